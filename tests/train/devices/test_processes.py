"""Tests of several processes that train one model: equal to one process, stopped and ended together."""

import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from flax_vae import from_pretrained
from flax_vae.train.build import make_components, make_state
from flax_vae.train.devices.parallel import make_parallel
from flax_vae.train.loop import train
from flax_vae.train.report.metrics_log import read_metrics
from flax_vae.train.run.directory import RunDirectory
from tests.train.runs import start

LIMIT = 60  # seconds within which processes notice the end of another


def finish(processes, limit=240):
    """Waits for the processes; returns their exit statuses and outputs."""
    outputs = []
    try:
        outputs = [process.communicate(timeout=limit)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def wait_for(path: Path, processes, limit=240):
    end = time.monotonic() + limit
    while not path.exists():
        assert all(process.poll() is None for process in processes), finish(processes)[1]
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.05)


@pytest.fixture
def recipe(small):
    """Returns a config with four images per update, one for each of four devices."""
    return replace(small, model=replace(small.model, ch_mult=(1,)), steps=3, log_every=1, save_every=100)


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


@pytest.mark.slow
def test_two_processes_equal_one(recipe, tmp_path, monkeypatch):
    runs = {}
    for name, (count, devices) in {"one process": (1, 4), "two processes": (2, 2)}.items():
        RunDirectory(tmp_path / name).begin(recipe)
        runs[name] = start(tmp_path / name, devices=devices, count=count)
    monkeypatch.setattr("flax_vae.train.loop.make_parallel", partial(make_parallel, devices=jax.devices()[:1]))
    wanted = flat(train(recipe, tmp_path / "one device").state.params)
    moved = np.linalg.norm(wanted - flat(make_state(recipe, make_components(recipe)).params))
    expected = read_metrics(tmp_path / "one device" / "metrics.jsonl")

    for name, processes in runs.items():
        statuses, outputs = finish(processes)
        assert set(statuses) == {0}, (name, outputs)
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3]
        for ours, theirs in zip(rows, expected, strict=True):
            for score in ("loss", "l1", "kl", "grad_norm", "learning_rate"):
                assert ours[score] == pytest.approx(theirs[score], rel=1e-4), (name, score)
        each, whole = (row[-1]["tflops_per_second"] / row[-1]["images_per_second"] for row in (rows, expected))
        assert each == pytest.approx(whole), name  # operations of an image
        # Adam takes full steps even for gradients that are pure rounding, such as that of a bias before a norm.
        _, params = from_pretrained(tmp_path / name / "export")
        assert np.linalg.norm(flat(params) - wanted) < 1e-2 * moved, name
    assert "4 cpu devices of 2 processes" in outputs[0]
    assert "step" not in outputs[1]  # only the first process prints


@pytest.mark.slow
def test_a_signal_stops_both_processes_and_a_killed_one_ends_the_other(recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.begin(replace(recipe, steps=100_000, parallel="mesh", zero=True, save_every=100_000))
    both = start(run.path, devices=2, count=2)
    wait_for(run.metrics, both)
    both[1].send_signal(signal.SIGUSR1)  # which the process passes to its handler of SIGTERM
    statuses, outputs = finish(both)
    assert statuses == [128 + signal.SIGTERM] * 2, outputs
    (saved,) = [int(entry.name) for entry in run.checkpoints.iterdir()]
    for output in outputs:
        assert f"stopped after step {saved} of 100000" in output

    run.metrics.unlink()
    both = start(run.path, devices=2, count=2)
    wait_for(run.metrics, both)
    both[1].kill()
    killed = time.monotonic()
    statuses, outputs = finish(both, LIMIT)
    print(f"the survivor ended {time.monotonic() - killed:.1f} s later with {statuses[0]}:\n{outputs[0]}")
    assert statuses[0] not in (0, 128 + signal.SIGTERM)
    assert f"resumed after step {saved}" in outputs[0]

    # One process with one device resumes from the shards of two processes with four devices.
    run.begin(replace(recipe, steps=saved + 2, parallel="mesh", zero=True))
    statuses, outputs = finish(start(run.path, devices=1))
    assert statuses == [0], outputs
    assert f"resumed after step {saved} of {saved + 2}" in outputs[0]
    assert [row["step"] for row in read_metrics(run.metrics)][-2:] == [saved + 1, saved + 2]
