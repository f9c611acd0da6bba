"""What a run directory holds, what is refused in it, and that no moment of its beginning makes it unusable."""

import json
from dataclasses import replace

import pytest

from flax_vae.train.cli.resolve import resolve
from flax_vae.train.errors import RunError
from flax_vae.train.run.directory import RunDirectory
from flax_vae.train.run.manifest import write_manifest
from tests.train.cli.test_resolve import flags

LISTING = {"a.png": "5 bytes, sha256 0", "b.png": "6 bytes, sha256 1", "d.png": "7 bytes, sha256 2"}


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run")


def save(run, step, config):
    """A checkpoint, as far as a run directory reads it."""
    metadata = run.checkpoints / str(step) / "config" / "metadata"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(json.dumps(config.to_dict()))
    write_manifest(run.checkpoints / str(step))
    return metadata


@pytest.fixture
def begun(run, small):
    """A run of ten steps with a checkpoint after the fifth."""
    run.begin(small, LISTING)
    save(run, 5, small)
    return run


ENTRIES = ("config.json", "data.json", "samples/", "metrics.jsonl", "checkpoints/", "report.html", "tensorboard/")


@pytest.mark.parametrize("entries", [*(ENTRIES[:count] for count in range(8)), *((entry,) for entry in ENTRIES)])
def test_from_any_first_moment_a_run_goes_on(run, small, entries):
    RunDirectory(run.path.with_name("whole")).begin(small, LISTING)
    run.path.mkdir()
    for hidden in (".lock", ".config.json.00000000.partial"):
        (run.path / hidden).touch()
    for entry in entries:
        if entry.endswith("/"):
            (run.path / entry).mkdir()
        elif entry.startswith(("config", "data")):
            (run.path / entry).write_bytes((run.path.with_name("whole") / entry).read_bytes())
        else:
            (run.path / entry).touch()
    assert run.stored_config() == (small if "config.json" in entries else None)
    assert run.check(small) == run.check_data(small, LISTING) == []
    run.begin(small, LISTING)
    assert run.stored_config() == small
    assert run.stored_listing() == LISTING
    assert run.samples.is_dir()


def test_the_configuration_is_written_first(run, small, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_text", fail)
    with pytest.raises(RunError, match="cannot be written"):
        run.begin(small, LISTING)
    assert list(run.path.iterdir()) == []


def fail(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_directory_of_somebody_else_is_refused(run):
    run.samples.mkdir(parents=True)
    (run.path / "samples_of_mine").touch()
    with pytest.raises(RunError, match=r"is not empty \(samples_of_mine\)"):
        run.stored_config()


def test_a_configuration_that_was_deleted_is_read_from_the_checkpoints(begun, small):
    newest = save(begun, 10, replace(small, seed=3))
    (begun.path / "config.json").unlink()
    (begun.path / "notes.txt").touch()  # what lies beside them does not matter then
    assert begun.stored_config() == replace(small, seed=3)
    newest.write_text(newest.read_text().replace('"seed": 3', '"seed": 4'))
    assert begun.stored_config() == small
    (begun.path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config.json does not describe .*remove it, for .*checkpoints holds the sett"):
        begun.stored_config()


@pytest.mark.parametrize("change", [{"start_from": "b"}, {"identity_init": True}, {"start_from": "a", "graft": True}])
def test_another_origin_is_refused_once_there_is_a_checkpoint(run, small, change):
    stored = replace(small, start_from=None if "identity_init" in change else "a")
    run.begin(stored)
    assert len(run.check(replace(stored, **change))) == 1  # nothing was learned yet
    save(run, 5, stored)
    with pytest.raises(RunError, match="5 steps with another start .*choose another workdir for a new run"):
        run.check(replace(stored, **change))


def test_weights_for_a_run_of_fresh_ones_are_refused_as_another_origin(run):
    config = resolve(flags(), run.path)
    assert config.identity_init
    run.begin(config)
    save(run, 5, config)
    with pytest.raises(RunError, match="another start .start_from: None -> 'weights'"):
        run.check(resolve(flags("--start-from", "weights"), run.path))


def test_the_same_origin_under_another_name_is_the_same(run, small, tmp_path, monkeypatch):
    stored = replace(small, start_from=str(tmp_path / "weights"))
    run.begin(stored)
    save(run, 5, stored)
    monkeypatch.chdir(tmp_path)
    assert run.check(run.fixed(replace(stored, start_from="weights"))) == []
    with pytest.raises(RunError, match="another start"):
        run.check(run.fixed(replace(stored, start_from=None)))


def test_a_complete_run_refuses_what_it_would_not_learn_from(begun, small):
    save(begun, 10, small)
    harmless = replace(small, parallel="mesh", zero=True, keep=5, log_every=1, tensorboard=True)
    assert [line.partition(":")[0] for line in begun.check(harmless)] == [
        *("parallel", "zero", "log_every", "keep", "tensorboard"),
    ]  # fmt: skip
    for changed in (replace(small, seed=3), replace(small, data=replace(small.data, crop_size=8))):
        with pytest.raises(RunError, match="holds a complete run, which trains no further .(seed: 0 -> 3|data.crop)"):
            begun.check(changed)
        assert len(begun.check(replace(changed, steps=20))) == 2  # it would learn


def test_other_data_are_refused_unless_they_are_accepted_and_recorded(begun, small):
    changed = {**LISTING, "b.png": "6 bytes, sha256 9", "z.png": ""}
    with pytest.raises(
        RunError, match=r"other data .data: 1 added .z.png., data: 1 edited .b.png.*--accept-changed-data"
    ):
        begun.check_data(small, changed)
    found = begun.check_data(small, changed, accept=True)
    before = (begun.path / "config.json").read_bytes()
    begun.begin(small, changed, found)
    assert begun.check_data(small, changed) == []
    assert begun.stored_config() == small
    history = json.loads((begun.path / "config.json").read_text())["history"]
    assert history == [{"after_step": 5, "changed": ["data: 1 added (z.png)", "data: 1 edited (b.png)"]}]
    begun.begin(replace(small, seed=1), changed, ["seed: 0 -> 1"])
    assert [entry["changed"] for entry in json.loads((begun.path / "config.json").read_text())["history"]] == [
        history[0]["changed"], ["seed: 0 -> 1"],
    ]  # fmt: skip
    # The record stays a file of settings for other runs.
    path = begun.path / "config.json"
    assert resolve(flags("--config", path), begun.path.with_name("other")) == replace(small, seed=1)
    assert before != path.read_bytes()


def test_other_data_are_taken_before_anything_was_learned(run, small):
    run.begin(small, LISTING)
    other = replace(small, data=replace(small.data, folder="elsewhere", held_out="x.png"))
    assert run.fixed(other) == other
    assert run.check_data(other, {"x.png": "", "y.png": ""}) == []


def test_a_complete_run_takes_no_other_data(begun, small):
    save(begun, 10, small)
    for accept in (False, True):
        with pytest.raises(RunError, match="holds a complete run of other data"):
            begun.check_data(small, {**LISTING, "z.png": ""}, accept=accept)
    assert begun.check_data(replace(small, data=replace(small.data, folder="moved")), LISTING) == []


def test_the_held_out_image_stays_whatever_is_added(begun, small):
    anew = replace(small, data=replace(small.data, held_out=None, folder="moved"))
    assert begun.fixed(anew) == replace(small, data=replace(small.data, folder="moved"))
    other = replace(small, data=replace(small.data, held_out="a.png"))
    assert begun.fixed(other) == other
    with pytest.raises(RunError, match=r"other data .data.held_out: 'd.png' -> 'a.png'"):
        begun.check_data(other, LISTING)
    assert begun.check_data(other, LISTING, accept=True) == []  # `check` says it


def test_a_damaged_listing_is_refused_and_a_missing_one_taken_anew(begun, small):
    path = begun.path / "data.json"
    text = path.read_text()
    for damaged in ("", "[]", "[" * 100_000, text[:-20], text.replace("a.png", "c.png")):
        path.write_text(damaged)
        with pytest.raises(RunError, match="data.json is damaged .*remove it to accept the data as they are now"):
            begun.check_data(small, LISTING)
    path.unlink()
    assert begun.check_data(small, {"q.png": ""}) == ["data: unknown before, because there is no data.json"]


def test_tensorboard_is_remembered(run):
    config = resolve(flags("--tensorboard"), run.path)
    assert config.tensorboard
    run.begin(config)
    assert resolve(flags(), run.path).tensorboard
    assert not resolve(flags("--no-tensorboard"), run.path).tensorboard
