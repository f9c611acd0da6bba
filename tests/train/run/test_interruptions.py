"""Runs that are killed, stopped and resumed equal an uninterrupted one bit for bit."""

import hashlib
import os
import random
import signal
from dataclasses import replace
from functools import partial

import jax
import pytest

from flax_vae.train.build import make_components, make_state
from flax_vae.train.config.schema import GanConfig, OptimConfig
from flax_vae.train.report.metrics_log import read_metrics
from flax_vae.train.run.checkpoints import Checkpoints
from flax_vae.train.run.directory import RunDirectory
from flax_vae.train.run.lock_file import lock
from tests.train.runs import Trainers

KILLS = 10
TOUCHES = (10, 100)  # range of file operations before a trainer is killed; enough for up to four checkpoints
SPEED = {"images_per_second", "tflops_per_second", "mfu"}


@pytest.fixture(scope="module")
def recipe(small):
    """Returns a config with a delayed discriminator, two optimisers, a moving average and batch statistics."""
    return replace(
        small,
        model=replace(small.model, ch_mult=(1,)),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=4, ema_decay=0.9),
        gan=GanConfig(weight=0.5, start=10, features=8, layers=1),
        steps=40,
        log_every=3,
        eval_every=1000,
        save_every=2,
    )


@pytest.fixture(scope="module")
def trainers():
    with Trainers() as process:
        yield process


@pytest.fixture
def begin(recipe, tmp_path):
    """Returns a function that creates run directories with nothing but the config."""

    def begin(name):
        RunDirectory(tmp_path / name).begin(recipe)
        return tmp_path / name

    return begin


def fingerprints(workdir, config):
    """Returns SHA-256 of leaves of the last checkpoint and of files of the export, and the logged rows."""
    like = jax.eval_shape(partial(make_state, config, make_components(config)))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        state = jax.device_get(checkpoints.restore(config.steps, like))
    found = {jax.tree_util.keystr(path): leaf.tobytes() for path, leaf in jax.tree.leaves_with_path(state)}
    found |= {file.name: file.read_bytes() for file in (workdir / "export").iterdir()}
    found |= {file.name: file.read_bytes() for file in (workdir / "samples").iterdir()}
    rows = [{name: row[name] for name in row if name not in SPEED} for row in read_metrics(workdir / "metrics.jsonl")]
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}, rows


@pytest.mark.slow
def test_killed_and_stopped_runs_equal_an_uninterrupted_one_bit_for_bit(recipe, begin, trainers):
    straight, killed, stopped = begin("straight"), begin("killed"), begin("stopped")
    end = trainers(straight)
    assert end.status == 0, end.output

    moments, unfinished = random.Random(0), 0
    # The first two are killed before anything is saved.
    for touch in [2, 6, *(moments.randint(*TOUCHES) for _ in range(KILLS - 2))]:
        end = trainers(killed, signal.SIGKILL, touch)
        assert end.status == -signal.SIGKILL, end.output
        unfinished += any((killed / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
    assert 1 <= unfinished < KILLS  # some during a save, some between saves
    end = trainers(killed)
    assert end.status == 0, end.output
    assert "resumed after step" in end.output

    end = trainers(stopped, signal.SIGTERM, moments.randint(*TOUCHES))
    assert end.status == 128 + signal.SIGTERM, end.output
    end = trainers(stopped)
    assert end.status == 0, end.output

    expected = fingerprints(straight, recipe)
    assert len(expected[0]) > 100
    assert fingerprints(killed, recipe) == expected
    assert fingerprints(stopped, recipe) == expected


def test_a_second_trainer_in_the_same_directory_is_refused(begin, trainers):
    workdir = begin("run")
    before = sorted(workdir.rglob("*"))
    with lock(workdir):
        end = trainers(workdir)
        assert end.status == 1
        assert f"is held by process {os.getpid()} on" in end.output
        assert len(end.output.splitlines()) == 1
    assert sorted(workdir.rglob("*")) == before
