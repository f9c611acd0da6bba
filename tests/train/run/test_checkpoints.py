"""Tests of checkpoints: damage, full disks, killed processes, retention."""

import itertools
import json
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.convert import PRESETS
from flax_vae.convert.files.manifest import MANIFEST, digest_of, find_damage, read_manifest
from flax_vae.train.config.schema import TrainConfig
from flax_vae.train.errors import RunError
from flax_vae.train.run.checkpoints import Checkpoints
from flax_vae.train.run.manifest import write_manifest

STEPS = (5, 10)
RUN = TrainConfig(model=PRESETS["tiny"])


def make_state(step, size=96):
    """Returns a state that is a pure function of the step."""
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.standard_normal((size, 8)), jnp.float32)
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": {"kernel": kernel, "bias": jnp.asarray(rng.standard_normal(8), jnp.bfloat16)},
        "updates": step,
    }


def like(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else 0, state
    )


def assert_is_of(step, restored, size=96):
    for got, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(make_state(step, size)), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    kept = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(kept) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, make_state(step), RUN, scores={"psnr": 20.0 + step})
    return kept


@pytest.fixture
def kept(saved, tmp_path):
    """Returns a copy of the checkpoints of steps 5 and 10."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def files_of(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def names(kept):
    return sorted(entry.name for entry in kept.iterdir())


def flip(path, where):
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def recover(kept):
    """Returns what a new start finds: step, state and problems."""
    with Checkpoints(kept) as checkpoints:
        step = checkpoints.newest_good()
        return step, checkpoints.restore(step, like(make_state(0))), checkpoints.problems


def test_newest_step_is_restored(kept):
    step, state, problems = recover(kept)
    assert (step, problems) == (10, [])
    assert_is_of(10, state)
    assert names(kept) == ["10", "5"]


def test_manifest_lists_all_other_files(kept):
    manifest = read_manifest(kept / "10")
    assert manifest is not None
    expected = {path.relative_to(kept / "10").as_posix() for path in files_of(kept / "10")}
    assert set(manifest.files) == expected - {MANIFEST, "commit_success.txt"}
    assert len(manifest.files) > 10
    assert manifest.scores == {"psnr": 30.0}


def test_flipped_bits_are_detected(kept):
    """Flips a bit at three places of every file; nothing is restored, which is fast."""
    missed = []
    for path in files_of(kept / "10"):
        before = path.read_bytes()
        for where in (0, 0.5, 1):
            flip(path, where)
            if find_damage(kept / "10") is None:
                missed.append((path.name, where, before))
            path.write_bytes(before)
    # Orbax writes this file last; its content and the time in its metadata do not matter.
    assert {name for name, _, _ in missed} <= {"commit_success.txt", "_CHECKPOINT_METADATA"}
    for _, where, before in [miss for miss in missed if miss[0] == "_CHECKPOINT_METADATA"]:
        assert before.index(b"commit_timestamp_nsecs") < where * len(before)
    assert find_damage(kept / "10") is None


FAULTS = {
    "a flipped bit in the data": (lambda step: flip(largest(step), 0.7), "has changed"),
    "a flipped bit in the names": (lambda step: flip(step / "state" / "_METADATA", 0.5), "state/_METADATA has changed"),
    "a flipped bit in the config": (
        lambda step: flip(step / "config" / "metadata", 0.2),
        "config/metadata has changed",
    ),
    "a flipped bit in orbax's metadata": (lambda step: flip(step / "_CHECKPOINT_METADATA", 0), "_CHECKPOINT_METADATA"),
    "a flipped bit in the manifest": (lambda step: flip(step / MANIFEST, 0.5), "manifest.json is damaged"),
    "a truncated file": (lambda step: largest(step).write_bytes(largest(step).read_bytes()[:-7]), "has changed"),
    "an empty file": (lambda step: largest(step).write_bytes(b""), "has changed"),
    "a deleted file": (lambda step: largest(step).unlink(), "is missing"),
    "a deleted folder": (lambda step: shutil.rmtree(step / "state"), "state/_METADATA is missing.* and [0-9]+ more"),
    "a folder in the place of a file": (
        lambda step: into_a_folder(largest(step)),
        "cannot be read .*Is a directory",
    ),
    "a deleted manifest": (lambda step: (step / MANIFEST).unlink(), "has no manifest.json"),
    "everything deleted": (lambda step: (shutil.rmtree(step), step.mkdir()), "has no manifest.json"),
}


def largest(step):
    return max(files_of(step / "state"), key=lambda path: path.stat().st_size)


def into_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_step_is_set_aside_and_an_older_one_used(kept, fault):
    damage, sentence = FAULTS[fault]
    damage(kept / "10")
    left = len(files_of(kept / "10"))
    step, state, problems = recover(kept)
    assert step == 5
    assert_is_of(5, state)
    (aside,) = set(names(kept)) - {"5"}
    assert aside == ("unverified-10" if "no manifest" in sentence else "corrupt-10")
    assert len(files_of(kept / aside)) == left
    (problem,) = problems
    assert problem.startswith(f"{kept / '10'} cannot be restored: ")
    assert re.search(sentence, problem), problem
    assert problem.endswith(f"it is now called {aside}")


def test_a_damaged_step_is_written_again(kept):
    for count in (1, 2):
        flip(largest(kept / "10"), 0.5)
        with Checkpoints(kept) as checkpoints:
            assert checkpoints.newest_good() == 5
            checkpoints.save(10, make_state(10), RUN)
            assert checkpoints.latest_step == 10
        assert names(kept) == sorted(["10", "5", "corrupt-10", "corrupt-10-2"][: 2 + count])
    step, state, _ = recover(kept)
    assert step == 10
    assert_is_of(10, state)


def test_if_all_steps_are_damaged_none_is_renamed(kept):
    flip(largest(kept / "5"), 0.5)
    (kept / "10" / MANIFEST).unlink()
    for _ in range(2):
        with Checkpoints(kept) as checkpoints:
            with pytest.raises(RunError, match="no checkpoint of this run is intact") as refused:
                checkpoints.newest_good()
            assert len(checkpoints.problems) == 2
        assert f"{kept / '10'} cannot" in str(refused.value)
        assert f"{kept / '5'} cannot" in str(refused.value)
        assert names(kept) == ["10", "5"]


def test_a_step_without_manifest_can_be_accepted(kept):
    shutil.rmtree(kept / "5")
    (kept / "10" / MANIFEST).unlink()
    write_manifest(kept / "10")
    assert recover(kept)[0] == 10


def test_a_renamed_step_is_detected(kept):
    shutil.copytree(kept / "5", kept / "12")
    step, state, problems = recover(kept)
    assert step == 10
    assert_is_of(10, state)
    (problem,) = problems
    assert problem == (
        f"{kept / '12'} cannot be restored: its manifest.json is that of step 5: the folder was renamed or copied; "
        "it is now called corrupt-12"
    )


def test_two_exchanged_steps_are_detected(kept):
    for before, after in (("5", "x"), ("10", "5"), ("x", "10")):
        (kept / before).rename(kept / after)
    with Checkpoints(kept) as checkpoints, pytest.raises(RunError) as refused:
        checkpoints.newest_good()
    assert "is that of step 5" in str(refused.value)
    assert "is that of step 10" in str(refused.value)


def test_a_manifest_without_a_step_is_reported_as_old(kept):
    content = json.loads((kept / "10" / MANIFEST).read_bytes())
    assert content.pop("step") == 10
    content["sha256"] = digest_of({name: value for name, value in content.items() if name != "sha256"})
    (kept / "10" / MANIFEST).write_text(json.dumps(content))
    step, state, problems = recover(kept)
    assert step == 10
    assert_is_of(10, state)
    assert len(problems) == 1 and "does not hold the number of the step" in problems[0]


def test_a_deeply_nested_manifest_or_a_foreign_path_is_damage(kept):
    (kept / "10" / MANIFEST).write_text("[" * 100_000)
    assert find_damage(kept / "10") == "manifest.json is damaged (it is nested too deeply)"
    content = {"format": 1, "step": 10, "files": {"../5/manifest.json": "0"}, "scores": {}}
    (kept / "10" / MANIFEST).write_text(json.dumps(content | {"sha256": digest_of(content)}))
    assert find_damage(kept / "10") == "../5/manifest.json cannot be read (its name leads out of the folder)"


def test_a_run_without_steps_starts_from_scratch(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.newest_good() is None
        assert (checkpoints.latest_step, checkpoints.best_step, checkpoints.problems) == (None, None, [])
    assert not (tmp_path / "none").exists()


def test_other_files_in_the_folder_are_ignored(kept):
    (kept / "notes.txt").write_text("mine")
    (kept / "12").write_text("a file")
    (kept / "007").mkdir()
    (kept / "corrupt-7").mkdir()
    (kept / "10" / "notes.txt").write_text("mine")
    with Checkpoints(kept) as checkpoints:
        assert checkpoints.newest_good() == 10
        checkpoints.save(15, make_state(15), RUN, wait=True)
        assert checkpoints.problems == []
    assert names(kept) == sorted(["007", "10", "12", "15", "corrupt-7", "notes.txt"])


def in_float32(state):
    state["params"]["bias"] = state["params"]["bias"].astype(jnp.float32)


def shorter(state):
    state["params"]["kernel"] = state["params"]["kernel"][:5]


def without_bias(state):
    del state["params"]["bias"]


def with_average(state):
    state["ema"] = state["params"]["kernel"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (in_float32, r"params/bias is bfloat16\[8\] in the checkpoint and float32\[8\] in this run"),
        (shorter, r"params/kernel is float32\[96, 8\] in the checkpoint and float32\[5, 8\] in this run"),
        (without_bias, r"params/bias is bfloat16\[8\] in the checkpoint and missing in this run"),
        (with_average, r"ema is missing in the checkpoint and float32\[96, 8\] in this run"),
    ],
)
def test_a_state_that_differs_from_the_stored_one_is_refused(kept, change, sentence):
    state = make_state(10)
    change(state)
    with Checkpoints(kept) as checkpoints, pytest.raises(RunError, match=sentence) as refused:
        checkpoints.restore(10, like(state))
    assert str(refused.value).startswith(f"{kept / '10'} cannot be restored")
    assert recover(kept)[0] == 10


@pytest.mark.parametrize("leaf", [np.zeros(3), np.arange(3), np.float32(1), np.int64(1)], ids=repr)
def test_leaves_that_cannot_be_restored_are_not_saved(tmp_path, leaf):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(RunError, match=r"params/count of the state is a numpy.* make it a jax array"),
    ):
        checkpoints.save(1, {"params": {"count": leaf}}, RUN)
    assert names(tmp_path) == []


def test_restore_verifies_any_step(kept):
    flip(largest(kept / "5"), 0.5)
    with Checkpoints(kept) as checkpoints:
        with pytest.raises(RunError, match="5 cannot be restored: .* has changed"):
            checkpoints.restore(5, like(make_state(5)))
        with pytest.raises(RunError, match="7 cannot be restored: the step does not exist"):
            checkpoints.restore(7, like(make_state(5)))
        assert_is_of(10, checkpoints.restore(10, like(make_state(0))))


SCORES = {1: 20.0, 2: 25.0, 3: 25.0, 4: float("nan"), 5: None, 6: 22.0}


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (1, None, [6]),
        (2, None, [5, 6]),
        (1, ("psnr", "max"), [2, 6]),
        (2, ("psnr", "min"), [1, 5, 6]),
        (3, ("lpips", "min"), [4, 5, 6]),
    ],
)
def test_latest_and_best_steps_are_kept(tmp_path, keep, best, left):
    for half in ([1, 2, 3], [4, 5, 6]):  # the second start reads the scores from the manifests
        with Checkpoints(tmp_path, keep=keep, best=best) as checkpoints:
            newest = checkpoints.newest_good()
            assert newest == (half[0] - 1 or None)
            for step in half:
                scores = {"psnr": SCORES[step]} if SCORES[step] is not None else None
                checkpoints.save(step, make_state(step), RUN, scores=scores)
            checkpoints.save(half[-1], make_state(half[-1]), RUN, wait=True)  # the step exists, so this only waits
            assert names(tmp_path)[-1] == str(half[-1])
    assert names(tmp_path) == [str(step) for step in left]
    with Checkpoints(tmp_path, keep=keep, best=best) as checkpoints:
        assert checkpoints.newest_good() == 6
        assert checkpoints.best_step == (left[0] if best and best[0] == "psnr" else None)
        if checkpoints.best_step:
            assert_is_of(left[0], checkpoints.restore(left[0], like(make_state(0))))


SKIPPED = {1: 0, 2: 0, 3: 0, 4: 1, 5: 2, 6: 3, 7: 4}  # every update from the fourth on is skipped


@pytest.mark.parametrize(("keep", "best", "left"), [(1, None, [2, 7]), (3, None, [2, 5, 6, 7]), (1, "psnr", [1, 2, 7])])
def test_a_divergence_keeps_the_last_good_checkpoint(tmp_path, keep, best, left):
    """The third step may have diverged, since no later update was finite; the second has not."""
    for half in ([1, 2, 3, 4], [5, 6, 7]):  # the second start reads the counts from the manifests
        with Checkpoints(tmp_path, keep=keep, best=best and (best, "max")) as checkpoints:
            checkpoints.newest_good()
            for step in half:
                scores = {"skipped": SKIPPED[step], "psnr": 9.0 - step}
                checkpoints.save(step, make_state(step), RUN, wait=True, scores=scores)
    assert names(tmp_path) == [str(step) for step in left]
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        assert checkpoints.set_aside(since=3) == 2
    assert names(tmp_path) == sorted([str(s) for s in left if s < 3] + [f"diverged-{s}" for s in left if s >= 3])
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        assert checkpoints.newest_good() == 2
        checkpoints.save(3, make_state(3), RUN, wait=True)
        assert checkpoints.set_aside(since=1 if best else 2) is None
    assert names(tmp_path)[-1].startswith("diverged-") and "3" in names(tmp_path)


def test_without_divergence_only_the_latest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, make_state(step), RUN, scores={"skipped": 1})
    assert names(tmp_path) == ["3", "4"]


def test_keep_zero_is_refused(tmp_path):
    with pytest.raises(RunError, match="keep=0 .* at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_saving_an_earlier_step_is_an_error(kept):
    with Checkpoints(kept) as checkpoints, pytest.raises(RunError, match="no checkpoint of step 7 .*holds step 10"):
        checkpoints.save(7, make_state(7), RUN)


@pytest.fixture
def small_files_only():
    """Limits files to 64 KiB, so that writes fail midway as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_reported_and_older_steps_stay_intact(kept, small_files_only):
    with Checkpoints(kept, keep=1) as checkpoints:
        with pytest.raises(RunError, match="no checkpoint of step 15 .*File too large"):
            # One array only; if several fail, orbax awaits the first, and Python warns about the others.
            checkpoints.save(15, {"kernel": make_state(15, size=1 << 14)["params"]["kernel"]}, RUN, wait=True)
        small_files_only()
        assert checkpoints.newest_good() == 10
        checkpoints.save(15, make_state(15), RUN, wait=True)
    assert names(kept) == ["15"]
    assert recover(kept)[0] == 15


FAILURES = """
import resource, shutil, sys, threading
from pathlib import Path
from flax_vae.convert.console import quiet_libraries
quiet_libraries()
import jax.numpy as jnp
from tests.train.run.test_checkpoints import RUN
from flax_vae.train.errors import RunError
from flax_vae.train.run import checkpoints as module
from flax_vae.train.run.checkpoints import Checkpoints

write_manifest = module.write_manifest


def write_after_deletion(unfinished, scores, step):
    deleted.wait()
    if fault == "deleted":  # also what was still written meanwhile
        shutil.rmtree(folder, ignore_errors=True)
    write_manifest(unfinished, scores, step)


module.write_manifest = write_after_deletion  # otherwise a fast disk has the step complete before it is deleted
state = {f"kernel_{index}": jnp.full((64, 64), index, jnp.float32) for index in range(100)}
before = resource.getrlimit(resource.RLIMIT_FSIZE)
for index, fault in enumerate(["full", "deleted"] * 3):
    folder, deleted = Path(sys.argv[1], str(index)), threading.Event()
    if fault == "full":
        deleted.set()
    try:
        with Checkpoints(folder) as checkpoints:
            if fault == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 13, before[1]))
            checkpoints.save(5, state, RUN)
            if fault == "deleted":
                shutil.rmtree(folder, ignore_errors=True)
            deleted.set()
            checkpoints.save(10, state, RUN, wait=True)
    except RunError as error:
        print(fault, str(error).removeprefix(str(folder)))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
"""


def test_a_failed_save_prints_one_line(tmp_path):
    """If a hundred arrays fail, orbax raises for one and its libraries report the others."""
    command = [sys.executable, "-c", FAILURES, tmp_path]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["full ", "deleted "] * 3, done.stdout
    assert all("no checkpoint of step 5 (" in line and len(line) < 500 for line in lines), done.stdout


def test_a_clock_set_forward_does_not_abort_a_save(kept, monkeypatch):
    calls, now = itertools.count(), time.time

    def jumping():
        saving = threading.current_thread().name == "async_save"  # the thread in which orbax waits for the write
        return now() + (86_400 * next(calls) if saving else 0)

    monkeypatch.setattr(time, "time", jumping)
    with Checkpoints(kept) as checkpoints:
        checkpoints.save(15, make_state(15), RUN, wait=True)
    assert next(calls) > 1
    assert_is_of(15, recover(kept)[1])


def test_a_deleted_step_gets_no_manifest(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_manifest(tmp_path / "5")
    assert not (tmp_path / "5").exists()


def test_without_its_manifest_no_step_is_complete(kept, monkeypatch):
    def full(step, scores, number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flax_vae.train.run.checkpoints.write_manifest", full)
    with Checkpoints(kept, keep=1) as checkpoints:
        checkpoints.save(15, make_state(15), RUN)
        with pytest.raises(RunError, match="No space left on device"):
            checkpoints.save(20, make_state(20), RUN)
    step, state, _ = recover(kept)
    assert step == 10
    assert_is_of(10, state)


LIVES = """
import json, os, random, signal, sys, time
from pathlib import Path
import orbax.checkpoint
from tests.train.run.test_checkpoints import RUN, assert_is_of, like, make_state
from flax_vae.train.run.checkpoints import Checkpoints

folder, rng, found = Path(sys.argv[1]), random.Random(0), []
torn = 0  # processes that ended with an incomplete step


def live(told):
    with Checkpoints(folder) as checkpoints:
        first = checkpoints.newest_good() or 0
        assert not checkpoints.problems, checkpoints.problems
        if first:
            assert_is_of(first, checkpoints.restore(first, like(make_state(0, SIZE))), SIZE)
        os.write(told, first.to_bytes(4, "big"))
        for step in range(first + 1, 10**6):
            checkpoints.save(step, make_state(step, SIZE), RUN)
            os.write(told, b"-")  # the previous step is complete


for _ in range(int(sys.argv[2])):
    hear, told = os.pipe()
    pid = os.fork()  # before JAX initialises its devices
    if pid == 0:
        try:
            live(told)
        finally:
            os._exit(1)
    os.close(told)
    found.append(int.from_bytes(os.read(hear, 4), "big"))
    os.read(hear, 1)
    times = [time.monotonic() for _ in range(2) if os.read(hear, 1)]
    time.sleep(rng.uniform(0, times[1] - times[0]))  # a random moment of a save on any machine
    os.close(hear)
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "a life ended by itself"
    torn += any(folder.glob("*.orbax-checkpoint-tmp*"))
print(json.dumps([found, torn]))
""".replace("SIZE", str(1 << 15))  # a megabyte


def test_a_process_killed_while_saving_leaves_a_complete_step(tmp_path):
    root = Path(__file__).parents[3]
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", LIVES, tmp_path, "10"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, torn = json.loads(done.stdout)
    assert found[0] == 0
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(found)), found  # of three started
    assert torn
    assert not [name for name in names(tmp_path) if name.startswith(("corrupt", "unverified"))]
