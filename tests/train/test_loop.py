"""Whole runs: interrupted, resumed, moved to the other parallel mode, poisoned."""

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
from flax_vae.inference import reconstruction
from flax_vae.train.data.photographs import Photographs
from flax_vae.train.data.prefetch import Batches
from flax_vae.train.errors import NotFiniteError, RunError, TrainError
from flax_vae.train.loop import train
from flax_vae.train.report.metrics_log import read_metrics
from flax_vae.train.run.signals import StopRequest


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.device_get(state))]


def rows(workdir):
    """What was logged, without the speed."""
    speed = {"images_per_second", "tflops_per_second"}
    return [{k: v for k, v in row.items() if k not in speed} for row in read_metrics(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory):
    """A run of ten steps, and one that SIGTERM stopped after the fifth: (workdir, outcome) each."""
    straight, stopped = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("stopped")

    class TermAtFive(StopRequest):
        def asked(self, step):
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().asked(step)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flax_vae.train.run.signals.StopRequest", TermAtFive)
        # The regular checkpoints come later: only the signal can make this one.
        outcome = train(dataclasses.replace(small, save_every=7), stopped)
    assert signal.getsignal(signal.SIGTERM) is before
    return {"straight": (straight, train(small, straight)), "stopped": (stopped, outcome)}


@pytest.fixture
def stopped(runs, tmp_path):
    """A copy of the stopped run's directory."""
    return shutil.copytree(runs["stopped"][0], tmp_path / "run")


def checkpoints(workdir):
    return sorted(int(entry.name) for entry in (workdir / "checkpoints").iterdir() if entry.name.isdigit())


def test_a_run_leaves_what_it_promises(runs, small):
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


def test_five_and_five_steps_equal_ten_bit_for_bit(runs, small, stopped, capsys):
    outcome = train(small, stopped)
    assert "going on after step 5 of 10" in capsys.readouterr().out
    for ours, theirs in zip(leaves(outcome.state), leaves(runs["straight"][1].state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert rows(stopped) == rows(runs["straight"][0])
    for name in ("config.json", "model.safetensors"):
        assert (stopped / "export" / name).read_bytes() == (runs["straight"][0] / "export" / name).read_bytes()


def test_a_run_that_an_earlier_version_began_goes_on_bit_for_bit(runs, small, stopped, capsys):
    path = stopped / "config.json"
    fields = json.loads(path.read_text())
    before = {"trainable": "train", "devices_per_image": "rows", "identity_init": "transparent_start"}
    path.write_text(json.dumps({before.get(name, name): value for name, value in fields.items()}))
    small = dataclasses.replace(small, save_every=7)  # as it was stopped
    outcome = train(small, stopped)
    assert "changed" not in capsys.readouterr().out
    for ours, theirs in zip(leaves(outcome.state), leaves(runs["straight"][1].state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert json.loads(path.read_text()) == json.loads(json.dumps(small.to_dict()))  # with the names of today


def test_a_run_goes_on_under_the_other_parallel_mode(runs, small, stopped, capsys):
    outcome = train(dataclasses.replace(small, parallel="mesh"), stopped)
    assert "changed since this run began: parallel: 'pmap' -> 'mesh'" in capsys.readouterr().out
    for ours, theirs in zip(leaves(outcome.state.params), leaves(runs["straight"][1].state.params), strict=True):
        assert np.abs(ours - theirs).mean() < 1e-2 * small.optim.learning_rate
    assert outcome.scores["psnr"] == pytest.approx(runs["straight"][1].scores["psnr"], abs=0.05)


def test_a_complete_run_says_so_and_computes_nothing(runs, small, monkeypatch, capsys):
    workdir, before = runs["straight"]
    monkeypatch.setattr(Photographs, "crop", None)
    metrics = (workdir / "metrics.jsonl").read_bytes()
    outcome = train(small, workdir)
    assert "complete: all 10 steps are done" in capsys.readouterr().out
    assert outcome.scores == before.scores
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_an_export_that_is_missing_is_made_again(runs, small, tmp_path):
    workdir = shutil.copytree(runs["straight"][0], tmp_path / "run")
    shutil.rmtree(workdir / "export")
    (workdir / "metrics.jsonl").unlink()
    outcome = train(small, workdir)
    assert outcome.scores == runs["straight"][1].scores
    name = "export/model.safetensors"
    assert (workdir / name).read_bytes() == (runs["straight"][0] / name).read_bytes()


def poison(monkeypatch, steps):
    """Batches without a single finite number, at those steps."""
    crop = Batches._crop

    def poisoned(self, batch, row, step, index):
        crop(self, batch, row, step, index)
        if step + 1 in steps:
            batch[row] = np.nan

    monkeypatch.setattr(Batches, "_crop", poisoned)


def test_an_update_that_is_not_finite_is_left_out_and_counted(small, stopped, monkeypatch, capsys):
    poison(monkeypatch, {6, 7})
    outcome = train(dataclasses.replace(small, steps=8, log_every=1, max_skipped=2), stopped)
    assert [(row["skipped"], row["in_a_row"], "loss" in row) for row in rows(stopped)[-3:]] == [
        (1, 1, False), (2, 2, False), (2, 0, True),
    ]  # fmt: skip
    assert "skipped 2" in capsys.readouterr().out
    assert all(np.isfinite(leaf).all() for leaf in leaves(outcome.state))


def test_too_many_in_a_row_end_the_run_with_the_weights_of_before(small, stopped, monkeypatch):
    poison(monkeypatch, range(6, 11))
    with pytest.raises(NotFiniteError, match=r"loss=nan, grad_norm=nan at step 10, .* 5 steps in a row, .*=4"):
        train(dataclasses.replace(small, max_skipped=4), stopped)
    assert checkpoints(stopped) == [5]
    assert [row["step"] for row in rows(stopped)] == [5]


def test_after_a_divergence_the_last_good_checkpoint_is_what_the_next_start_goes_on_from(small, stopped):
    wild = dataclasses.replace(
        small, optim=dataclasses.replace(small.optim, learning_rate=1e30), save_every=1, keep=1, max_skipped=3, steps=20
    )
    with pytest.raises(NotFiniteError, match=r"at step 10, .* 4 steps in a row.*the next start goes on after step 5, "):
        train(wild, stopped)
    assert checkpoints(stopped) == [5]
    assert [entry.name for entry in (stopped / "checkpoints").glob("diverged-*")] == ["diverged-9"]


def test_a_run_without_a_finite_update_ends_with_an_error_and_no_model(small, tmp_path, monkeypatch):
    poison(monkeypatch, {1, 2})
    first = dataclasses.replace(small, steps=2, data=dataclasses.replace(small.data, held_out=None))
    with pytest.raises(NotFiniteError, match="none of 2 updates was finite, so nothing was learned"):
        train(first, tmp_path)
    assert not (tmp_path / "export").exists()
    assert not (tmp_path / "checkpoints").exists()
    # The image that was held out is fixed by its name, whatever comes after it later.
    assert json.loads((tmp_path / "config.json").read_text())["data"]["held_out"] == "sub/c.png"


def test_a_model_whose_reconstruction_is_not_finite_has_no_scores_and_is_not_exported(
    runs, small, tmp_path, monkeypatch
):
    workdir = shutil.copytree(runs["straight"][0], tmp_path / "run")
    shutil.rmtree(workdir / "export")
    (workdir / "metrics.jsonl").unlink()
    decode = reconstruction._decode
    monkeypatch.setattr(reconstruction, "_decode", lambda *args: decode(*args) * np.nan)
    monkeypatch.setattr("flax_vae.train.evaluation.whole_images.to_uint8", lambda _: pytest.fail("pixels of NaN"))
    with pytest.raises(NotFiniteError, match="no finite reconstruction after step 10, so nothing is exported"):
        train(small, workdir)
    assert not (workdir / "export").exists()


def content(workdir):
    return {path.relative_to(workdir): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_moved_data_are_the_same_and_exchanged_ones_are_refused(runs, small, stopped, tmp_path, folder, capsys):
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


def test_a_complete_run_is_never_relabelled(runs, small, tmp_path, folder):
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
        ({"seed": 1}, "trains no further .seed: 0 -> 1"),
    ]:
        with pytest.raises(RunError, match=message):
            train(dataclasses.replace(small, **change), workdir, accept_changed_data=True)
    assert content(workdir) == before


def test_a_start_that_is_refused_leaves_no_directory(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    (tmp_path / "empty").mkdir()
    none = dataclasses.replace(small.data, folder=str(tmp_path / "empty"))
    for change in ({"tensorboard": True}, {"data": none}, {"start_from": "nowhere"}, {"batch_size": 3}):
        with pytest.raises(TrainError):
            train(dataclasses.replace(small, **change), tmp_path / "new" / "run")
        assert not (tmp_path / "new").exists()


def test_fewer_steps_than_are_done_are_refused(runs, small):
    workdir, _ = runs["straight"]
    config = (workdir / "config.json").read_bytes()
    with pytest.raises(RunError, match="10 steps behind it, more than steps=7"):
        train(dataclasses.replace(small, steps=7), workdir)
    assert (workdir / "config.json").read_bytes() == config


def test_another_architecture_is_refused(runs, small):
    other = dataclasses.replace(small, model=dataclasses.replace(small.model, z_channels=8))
    with pytest.raises(RunError, match=r"another architecture \(z_channels: 4 -> 8\)"):
        train(other, runs["straight"][0])


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(runs, small, tmp_path, capsys):
    workdir = shutil.copytree(runs["straight"][0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "10" / "state")
    outcome = train(small, workdir)
    said = capsys.readouterr().out
    assert "corrupt-10" in said
    assert "going on after step 5 of 10" in said
    for ours, theirs in zip(leaves(outcome.state), leaves(runs["straight"][1].state), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_bfloat16_and_rematerialisation_keep_float32_parameters(small, tmp_path):
    config = dataclasses.replace(small, steps=2, dtype="bfloat16", remat="blocks")
    outcome = train(config, tmp_path / "half")
    assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(outcome.state.params))
    half = rows(tmp_path / "half")[-1]
    train(dataclasses.replace(small, steps=2), tmp_path / "full")
    full = rows(tmp_path / "full")[-1]
    assert half["l1"] != full["l1"]
    assert half["l1"] == pytest.approx(full["l1"], rel=0.02)
