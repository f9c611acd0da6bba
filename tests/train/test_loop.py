"""Tests of whole runs: resumed, with changed settings or data, with updates that are not finite."""

import dataclasses
import json
import os
import shutil
import signal
import sys

import jax
import numpy as np
import pytest

from flax_vae import from_pretrained
from flax_vae.convert import FlaxVaeError
from flax_vae.inference import reconstruction
from flax_vae.train.data.photographs import Photographs
from flax_vae.train.data.prefetch import Batches
from flax_vae.train.errors import NotFiniteError, RunError
from flax_vae.train.loop import train
from flax_vae.train.report.metrics_log import read_metrics
from flax_vae.train.run.signals import StopRequest


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(state))]


def rows(workdir):
    """Returns the logged rows without speeds."""
    speed = {"images_per_second", "tflops_per_second"}
    return [{k: v for k, v in row.items() if k not in speed} for row in read_metrics(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """Returns (workdir, outcome) of a run of ten steps, and of one that SIGTERM stopped after the fifth."""
    straight, stopped = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("stopped")

    class TermAtFive(StopRequest):
        def asked(self, step):
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().asked(step)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flax_vae.train.run.signals.StopRequest", TermAtFive)
        # Regular checkpoints come later, so that the signal alone causes this one.
        outcome = train(dataclasses.replace(small, save_every=7), stopped)
    assert signal.getsignal(signal.SIGTERM) is before
    return {"straight": (straight, train(small, straight)), "stopped": (stopped, outcome)}


@pytest.fixture
def stopped(runs, tmp_path):
    """Returns a copy of the stopped run's directory."""
    return shutil.copytree(runs["stopped"][0], tmp_path / "run")


def checkpoints(workdir):
    return sorted(int(entry.name) for entry in (workdir / "checkpoints").iterdir() if entry.name.isdigit())


def test_a_run_writes_its_directory(runs, small):
    workdir, outcome = runs["straight"]
    assert {entry.name for entry in workdir.iterdir()} == {
        "checkpoints", "config.json", "data.json", "export", "metrics.jsonl", "report.html", "samples",
    }  # fmt: skip
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(small.to_dict()))
    assert [row["step"] for row in rows(workdir)] == [5, 10]
    assert set(rows(workdir)[0]) == {"step", "loss", "l1", "kl", "grad_norm", "learning_rate", "skipped", "in_a_row"}
    assert rows(workdir)[1]["psnr"] == outcome.scores["psnr"]
    assert [entry.name for entry in (workdir / "samples").iterdir()] == ["step_0000010.png"]
    assert outcome.step == 10
    assert 5 < outcome.scores["psnr"] < 60
    model, params = from_pretrained(workdir / "export")
    assert model.params == small.model
    for ours, theirs in zip(leaves(outcome.state.params), leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_sigterm_saves_after_the_current_step(runs):
    workdir, outcome = runs["stopped"]
    assert outcome.stopped_by == signal.SIGTERM
    assert outcome.step == 5
    assert outcome.scores == {}
    assert checkpoints(workdir) == [5]
    assert not (workdir / "export").exists()


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(runs, small, stopped, capsys):
    outcome = train(small, stopped)
    assert "resumed after step 5 of 10" in capsys.readouterr().out
    for ours, theirs in zip(leaves(outcome.state), leaves(runs["straight"][1].state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert rows(stopped) == rows(runs["straight"][0])
    for name in ("config.json", "model.safetensors"):
        assert (stopped / "export" / name).read_bytes() == (runs["straight"][0] / "export" / name).read_bytes()


def test_run_of_an_earlier_version_resumes_bit_for_bit(runs, small, stopped, capsys):
    path = stopped / "config.json"
    fields = json.loads(path.read_text())
    before = {"trainable": "train", "devices_per_image": "rows", "identity_init": "transparent_start"}
    path.write_text(json.dumps({before.get(name, name): value for name, value in fields.items()}))
    small = dataclasses.replace(small, save_every=7)  # the setting of the stopped run
    outcome = train(small, stopped)
    assert "changed" not in capsys.readouterr().out
    for ours, theirs in zip(leaves(outcome.state), leaves(runs["straight"][1].state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert json.loads(path.read_text()) == json.loads(json.dumps(small.to_dict()))  # with the new names


def test_a_run_resumes_with_another_parallel_mode(runs, small, stopped, capsys):
    outcome = train(dataclasses.replace(small, parallel="mesh"), stopped)
    assert "changed since this run began: parallel: 'pmap' -> 'mesh'" in capsys.readouterr().out
    for ours, theirs in zip(leaves(outcome.state.params), leaves(runs["straight"][1].state.params), strict=True):
        assert np.abs(ours - theirs).mean() < 1e-2 * small.optim.learning_rate
    assert outcome.scores["psnr"] == pytest.approx(runs["straight"][1].scores["psnr"], abs=0.05)


def test_a_complete_run_computes_nothing(runs, small, monkeypatch, capsys):
    workdir, before = runs["straight"]
    monkeypatch.setattr(Photographs, "crop", None)
    metrics = (workdir / "metrics.jsonl").read_bytes()
    outcome = train(small, workdir)
    assert "complete: all 10 steps are done" in capsys.readouterr().out
    assert outcome.scores == before.scores
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_a_missing_export_is_written_again(runs, small, tmp_path):
    workdir = shutil.copytree(runs["straight"][0], tmp_path / "run")
    shutil.rmtree(workdir / "export")
    (workdir / "metrics.jsonl").unlink()
    outcome = train(small, workdir)
    assert outcome.scores == runs["straight"][1].scores
    name = "export/model.safetensors"
    assert (workdir / name).read_bytes() == (runs["straight"][0] / name).read_bytes()


def poison(monkeypatch, steps):
    """Replaces the batches of these steps by NaN."""
    crop = Batches._crop

    def poisoned(self, batch, row, step, index):
        crop(self, batch, row, step, index)
        if step + 1 in steps:
            batch[row] = np.nan

    monkeypatch.setattr(Batches, "_crop", poisoned)


def test_updates_that_are_not_finite_are_skipped_and_counted(small, stopped, monkeypatch, capsys):
    poison(monkeypatch, {8, 9})  # with ten steps, the schedule and thus the compiled step are those of the other runs
    outcome = train(dataclasses.replace(small, log_every=1, max_skipped=2), stopped)
    assert [(row["skipped"], row["in_a_row"], "loss" in row) for row in rows(stopped)[-3:]] == [
        (1, 1, False), (2, 2, False), (2, 0, True),
    ]  # fmt: skip
    assert "skipped 2" in capsys.readouterr().out
    assert all(np.isfinite(leaf).all() for leaf in leaves(outcome.state))


def test_too_many_consecutive_skipped_updates_end_the_run(small, stopped, monkeypatch):
    poison(monkeypatch, range(6, 11))
    with pytest.raises(NotFiniteError, match=r"loss=nan, grad_norm=nan at step 10, .* 5 consecutive steps .*=4"):
        train(dataclasses.replace(small, max_skipped=4), stopped)
    assert checkpoints(stopped) == [5]
    assert [row["step"] for row in rows(stopped)] == [5]


def test_checkpoints_of_a_divergence_are_set_aside(small, stopped):
    wild = dataclasses.replace(
        small, optim=dataclasses.replace(small.optim, learning_rate=1e30), save_every=1, keep=1, max_skipped=3, steps=20
    )
    with pytest.raises(NotFiniteError, match=r"at step 10, .* 4 consecutive steps .*resumes after step 5, "):
        train(wild, stopped)
    assert checkpoints(stopped) == [5]
    assert [entry.name for entry in (stopped / "checkpoints").glob("diverged-*")] == ["diverged-9"]


def test_a_run_without_a_finite_update_exports_nothing(small, tmp_path, monkeypatch):
    poison(monkeypatch, range(1, 11))
    first = dataclasses.replace(small, save_every=100, data=dataclasses.replace(small.data, held_out=None))
    with pytest.raises(NotFiniteError, match="none of 10 updates was finite"):
        train(first, tmp_path)
    assert not (tmp_path / "export").exists()
    assert not (tmp_path / "checkpoints").exists()
    # The held-out image is stored by name, so that new images do not change it.
    assert json.loads((tmp_path / "config.json").read_text())["data"]["held_out"] == "sub/c.png"


def test_a_model_with_a_reconstruction_that_is_not_finite_is_not_exported(runs, small, tmp_path, monkeypatch):
    workdir = shutil.copytree(runs["straight"][0], tmp_path / "run")
    shutil.rmtree(workdir / "export")
    (workdir / "metrics.jsonl").unlink()
    decode = reconstruction._decode
    monkeypatch.setattr(reconstruction, "_decode", lambda *args: decode(*args) * np.nan)
    monkeypatch.setattr("flax_vae.train.evaluation.whole_images.to_uint8", lambda _: pytest.fail("pixels of NaN"))
    with pytest.raises(NotFiniteError, match="not finite after step 10, so nothing is exported"):
        train(small, workdir)
    assert not (workdir / "export").exists()


def content(workdir):
    return {path.relative_to(workdir): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_moved_images_are_accepted_and_changed_ones_refused(runs, small, stopped, tmp_path, folder, capsys):
    shutil.copytree(folder, tmp_path / "moved")
    there = dataclasses.replace(
        small, data=dataclasses.replace(small.data, folder=str(tmp_path / "moved"), held_out=None)
    )
    before = content(stopped)
    shutil.copy(folder / "d.png", tmp_path / "moved" / "a.png")
    shutil.copy(folder / "d.png", tmp_path / "moved" / "zz.png")
    with pytest.raises(
        RunError, match=r"other data .data: 1 added .zz.png., data: 1 edited .a.png.*accept-changed-data"
    ):
        train(there, stopped)
    assert content(stopped) == before

    shutil.copy(folder / "a.png", tmp_path / "moved" / "a.png")
    (tmp_path / "moved" / "zz.png").unlink()
    outcome = train(there, stopped)
    assert "changed since this run began: data.folder: " in capsys.readouterr().out
    for ours, theirs in zip(leaves(outcome.state), leaves(runs["straight"][1].state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (change,) = json.loads((stopped / "config.json").read_text())["history"]
    assert change["after_step"] == 5


def test_settings_of_a_complete_run_do_not_change(runs, small, tmp_path, folder):
    workdir = runs["straight"][0]
    before = content(workdir)
    shutil.copytree(folder, tmp_path / "other")
    shutil.copy(folder / "a.png", tmp_path / "other" / "d.png")
    (tmp_path / "empty").mkdir()
    for change, message in [
        ({"start_from": str(workdir / "export")}, "with another start .start_from: None -> "),
        (
            {"data": dataclasses.replace(small.data, folder=str(tmp_path / "other"))},
            "other data .data: 1 edited .d.png",
        ),
        (
            {"data": dataclasses.replace(small.data, folder=str(tmp_path / "empty"))},
            "cannot be used: .*holds no image file",
        ),
        ({"seed": 1}, "no effect .seed: 0 -> 1"),
    ]:
        with pytest.raises(RunError, match=message):
            train(dataclasses.replace(small, **change), workdir, accept_changed_data=True)
    assert content(workdir) == before


def test_a_refused_start_leaves_no_directory(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    (tmp_path / "empty").mkdir()
    none = dataclasses.replace(small.data, folder=str(tmp_path / "empty"))
    for change in ({"tensorboard": True}, {"data": none}, {"start_from": "nowhere"}, {"batch_size": 3}):
        with pytest.raises(FlaxVaeError):
            train(dataclasses.replace(small, **change), tmp_path / "new" / "run")
        assert not (tmp_path / "new").exists()


def test_fewer_steps_than_done_are_refused(runs, small):
    workdir, _ = runs["straight"]
    config = (workdir / "config.json").read_bytes()
    with pytest.raises(RunError, match="10 steps, more than steps=7"):
        train(dataclasses.replace(small, steps=7), workdir)
    assert (workdir / "config.json").read_bytes() == config


def test_another_architecture_is_refused(runs, small):
    other = dataclasses.replace(small, model=dataclasses.replace(small.model, z_channels=8))
    with pytest.raises(RunError, match=r"another architecture \(z_channels: 4 -> 8\)"):
        train(other, runs["straight"][0])


def test_a_damaged_checkpoint_is_set_aside_and_an_older_one_used(runs, small, tmp_path, capsys):
    workdir = shutil.copytree(runs["straight"][0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "10" / "state")
    outcome = train(small, workdir)
    output = capsys.readouterr().out
    assert "corrupt-10" in output
    assert "resumed after step 5 of 10" in output
    for ours, theirs in zip(leaves(outcome.state), leaves(runs["straight"][1].state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_parameters_stay_float32_with_bfloat16_and_remat(small, tmp_path):
    config = dataclasses.replace(small, steps=2, dtype="bfloat16", remat="blocks")
    outcome = train(config, tmp_path / "half")
    assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(outcome.state.params))
    half = rows(tmp_path / "half")[-1]
    train(dataclasses.replace(small, steps=2), tmp_path / "full")
    full = rows(tmp_path / "full")[-1]
    assert half["l1"] != full["l1"]
    assert half["l1"] == pytest.approx(full["l1"], rel=0.02)
