"""Runs in a bucket: killed, stopped, refused, damaged; by two processes."""

import json
import subprocess
import sys

import pytest

from flax_vae.convert import PRESETS
from flax_vae.convert.files import bucket_lock, create_at, exists_at, list_at, read_at, remove_at, write_at
from flax_vae.convert.files.manifest import MANIFEST
from flax_vae.train.config.schema import TrainConfig
from flax_vae.train.errors import RunError
from flax_vae.train.report.metrics_log import Metrics, read_metrics
from flax_vae.train.run.checkpoints import Checkpoints
from flax_vae.train.run.directory import RunDirectory
from flax_vae.train.run.hold import hold_directory
from tests.train.run.test_checkpoints import assert_is_of, like, make_state

RUN = TrainConfig(model=PRESETS["tiny"])


@pytest.fixture
def run(bucket, tmp_path):
    return RunDirectory(f"{bucket}/{tmp_path.name}")


def names(folder):
    return [entry.name for entry in list_at(folder)]


def recover(run):
    with Checkpoints(run.checkpoints) as checkpoints:
        step = checkpoints.newest_good()
        return step, checkpoints.restore(step, like(make_state(0))), checkpoints.problems


@pytest.fixture
def saved(run):
    """A run with the checkpoints of steps 10 and 15; that of step 5 has been removed."""
    with Checkpoints(run.checkpoints) as checkpoints:
        for step in (5, 10, 15):
            checkpoints.save(step, make_state(step), RUN, scores={"psnr": 20.0, "skipped": 0})
    return run


def test_damage_is_found_and_set_aside_and_what_is_unfinished_is_removed(saved):
    assert names(saved.checkpoints) == ["10", "15"]
    step, state, problems = recover(saved)
    assert (step, problems) == (15, [])
    assert_is_of(15, state)

    # A process that was killed while it saved step 20 has written no manifest yet.
    write_at(saved.checkpoints / "20" / "state" / "manifest.ocdbt", b"half")
    assert saved.steps == [10, 15]
    newest = saved.checkpoints / "15"
    part = next(entry for entry in list_at(newest, recursive=True) if entry.size > 2000)
    content = bytearray(read_at(newest / part.name))
    content[1000] ^= 4
    write_at(newest / part.name, bytes(content))
    step, state, problems = recover(saved)
    assert step == 10 and f"{part.name} has changed" in problems[0] and "corrupt-15" in problems[0]
    assert_is_of(10, state)
    assert names(saved.checkpoints) == ["10", "corrupt-15"]
    assert read_at(saved.checkpoints / "corrupt-15" / part.name) == bytes(content)

    remove_at(saved.checkpoints / "10" / "config" / "metadata")
    with pytest.raises(RunError, match="config/metadata is missing"):
        recover(saved)
    assert names(saved.checkpoints) == ["10", "corrupt-15"]


def test_a_step_that_another_trainer_took_over_is_not_sealed(run):
    def taken():
        raise RunError("taken over")

    with pytest.raises(RunError, match="taken over"), Checkpoints(run.checkpoints, require_held=taken) as checkpoints:
        checkpoints.save(5, make_state(5), RUN, wait=True)
    assert not exists_at(run.checkpoints / "5" / MANIFEST) and run.steps == []


HOLD = """
import sys
from flax_vae.convert.files import BucketLock, as_path
with BucketLock(as_path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(run):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.communicate()


def test_a_second_trainer_is_refused_until_the_first_has_ended(run, holder):
    refused = f"process {holder.pid} on .*last sign of life.*--take-over"
    with pytest.raises(RunError, match=refused), hold_directory(run.path):
        pass
    holder.kill()
    holder.wait()
    with hold_directory(run.path) as lock:  # this machine knows that it has ended
        assert f"taken over from process {holder.pid}" in lock.notes[0]
        lock.require_held()
        assert names(run.path) == [".lock-000002"]
    assert names(run.path) == []


def test_a_trainer_that_was_taken_over_ends(run):
    with hold_directory(run.path) as first, hold_directory(run.path, take_over=True) as second:
        second.require_held()
        with pytest.raises(RunError, match="was taken over by process"):
            first.require_held()


def elsewhere(run, beats=0):
    content = {
        "token": "x",
        "host": "far",
        "pid": 1,
        "machine": "far",
        "begun": "then",
        "alive": "then",
        "beats": beats,
    }
    return json.dumps(content).encode()


def test_a_holder_elsewhere_is_taken_over_when_it_gives_no_sign_of_life(run, monkeypatch):
    monkeypatch.setattr(bucket_lock, "SILENT_SECONDS", 0.1)
    create_at(run.path / ".lock-000007", elsewhere(run))
    with hold_directory(run.path) as lock:
        assert "gave no sign of life" in lock.notes[0]
        assert names(run.path) == [".lock-000008"]


def test_a_holder_elsewhere_that_gives_one_is_not(run, monkeypatch):
    create_at(run.path / ".lock-000007", elsewhere(run))
    monkeypatch.setattr(
        bucket_lock.time, "sleep", lambda seconds: write_at(run.path / ".lock-000007", elsewhere(run, 1))
    )
    with pytest.raises(RunError, match="process 1 on far"), hold_directory(run.path):
        pass
    assert names(run.path) == [".lock-000007"]


def test_metrics_are_written_whole(run):
    log = Metrics(run.metrics, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step})
    log.flush()
    assert [row["step"] for row in read_metrics(run.metrics)] == [1, 2, 3]
    Metrics(run.metrics, 2).write(3, {"loss": 0.0})  # killed before it was flushed
    assert [row["step"] for row in read_metrics(run.metrics)] == [1, 2]


def test_another_store_cannot_hold_a_run():
    with pytest.raises(RunError, match="s3://bucket/run.*gs://"):
        RunDirectory("s3://bucket/run")
