"""Tests of run directories: content, refused changes, interrupted starts."""

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
    """Writes the part of a checkpoint that a run directory reads."""
    metadata = run.checkpoints / str(step) / "config" / "metadata"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(json.dumps(config.to_dict()))
    write_manifest(run.checkpoints / str(step))
    return metadata


@pytest.fixture
def begun(run, small):
    """Returns a run of ten steps with a checkpoint after the fifth."""
    run.begin(small, LISTING)
    save(run, 5, small)
    return run


ENTRIES = ("config.json", "data.json", "samples/", "metrics.jsonl", "checkpoints/", "report.html", "tensorboard/")


@pytest.mark.parametrize("entries", [*(ENTRIES[:count] for count in range(8)), *((entry,) for entry in ENTRIES)])
def test_a_run_resumes_from_any_incomplete_directory(run, small, entries):
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


def test_config_is_written_first(run, small, monkeypatch):
    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(RunError, match="cannot be written"):
        run.begin(small, LISTING)
    assert list(run.path.iterdir()) == []


def fail(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_directory_with_other_files_is_refused(run):
    run.samples.mkdir(parents=True)
    (run.path / "samples_of_mine").touch()
    with pytest.raises(RunError, match=r"is not empty \(samples_of_mine\)"):
        run.stored_config()


def test_a_deleted_config_is_read_from_the_checkpoints(begun, small):
    newest = save(begun, 10, replace(small, seed=3))
    (begun.path / "config.json").unlink()
    (begun.path / "notes.txt").touch()  # other files do not matter
    assert begun.stored_config() == replace(small, seed=3)
    newest.write_text(newest.read_text().replace('"seed": 3', '"seed": 4'))
    assert begun.stored_config() == small
    (begun.path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config.json does not describe .*remove it, for .*checkpoints holds the sett"):
        begun.stored_config()


@pytest.mark.parametrize("change", [{"start_from": "b"}, {"identity_init": True}, {"start_from": "a", "graft": True}])
def test_a_changed_start_is_refused_after_the_first_checkpoint(run, small, change):
    stored = replace(small, start_from=None if "identity_init" in change else "a")
    run.begin(stored)
    assert len(run.check(replace(stored, **change))) == 1  # accepted before the first checkpoint
    save(run, 5, stored)
    with pytest.raises(RunError, match="5 steps with another start .*choose another workdir for a new run"):
        run.check(replace(stored, **change))


def test_initial_weights_for_a_run_from_scratch_are_refused(run):
    config = resolve(flags(), run.path)
    assert config.identity_init
    run.begin(config)
    save(run, 5, config)
    with pytest.raises(RunError, match="another start .start_from: None -> 'weights'"):
        run.check(resolve(flags("--start-from", "weights"), run.path))


def test_an_equal_path_is_no_changed_start(run, small, tmp_path, monkeypatch):
    stored = replace(small, start_from=str(tmp_path / "weights"))
    run.begin(stored)
    save(run, 5, stored)
    monkeypatch.chdir(tmp_path)
    assert run.check(run.fixed(replace(stored, start_from="weights"))) == []
    with pytest.raises(RunError, match="another start"):
        run.check(run.fixed(replace(stored, start_from=None)))


def test_a_complete_run_refuses_changed_settings(begun, small):
    save(begun, 10, small)
    harmless = replace(small, parallel="mesh", zero=True, keep=5, log_every=1, tensorboard=True)
    assert [line.partition(":")[0] for line in begun.check(harmless)] == [
        *("parallel", "zero", "log_every", "keep", "tensorboard"),
    ]  # fmt: skip
    for changed in (replace(small, seed=3), replace(small, data=replace(small.data, crop_size=8))):
        with pytest.raises(RunError, match="holds a complete run, .* no effect .(seed: 0 -> 3|data.crop)"):
            begun.check(changed)
        assert len(begun.check(replace(changed, steps=20))) == 2  # accepted, because training continues


def test_changed_data_are_refused_unless_accepted(begun, small):
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
    # The file can still be used as a settings file of other runs.
    path = begun.path / "config.json"
    assert resolve(flags("--config", path), begun.path.with_name("other")) == replace(small, seed=1)
    assert before != path.read_bytes()


def test_changed_data_are_accepted_before_the_first_checkpoint(run, small):
    run.begin(small, LISTING)
    other = replace(small, data=replace(small.data, folder="elsewhere", held_out="x.png"))
    assert run.fixed(other) == other
    assert run.check_data(other, {"x.png": "", "y.png": ""}) == []


def test_a_complete_run_refuses_changed_data(begun, small):
    save(begun, 10, small)
    for accept in (False, True):
        with pytest.raises(RunError, match="holds a complete run of other data"):
            begun.check_data(small, {**LISTING, "z.png": ""}, accept=accept)
    assert begun.check_data(replace(small, data=replace(small.data, folder="moved")), LISTING) == []


def test_held_out_image_stays_when_images_are_added(begun, small):
    anew = replace(small, data=replace(small.data, held_out=None, folder="moved"))
    assert begun.fixed(anew) == replace(small, data=replace(small.data, folder="moved"))
    other = replace(small, data=replace(small.data, held_out="a.png"))
    assert begun.fixed(other) == other
    with pytest.raises(RunError, match=r"other data .data.held_out: 'd.png' -> 'a.png'"):
        begun.check_data(other, LISTING)
    assert begun.check_data(other, LISTING, accept=True) == []  # reported by `check`


def test_a_damaged_listing_is_refused_and_a_missing_one_created(begun, small):
    path = begun.path / "data.json"
    text = path.read_text()
    for damaged in ("", "[]", "[" * 100_000, text[:-20], text.replace("a.png", "c.png")):
        path.write_text(damaged)
        with pytest.raises(RunError, match="data.json is damaged .*remove it to accept the data as they are now"):
            begun.check_data(small, LISTING)
    path.unlink()
    assert begun.check_data(small, {"q.png": ""}) == ["data: unknown, because data.json is missing"]


def test_tensorboard_setting_is_kept(run):
    config = resolve(flags("--tensorboard"), run.path)
    assert config.tensorboard
    run.begin(config)
    assert resolve(flags(), run.path).tensorboard
    assert not resolve(flags("--no-tensorboard"), run.path).tensorboard
