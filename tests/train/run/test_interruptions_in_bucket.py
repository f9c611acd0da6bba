"""Runs in a bucket that are killed, stopped and resumed equal an uninterrupted one on a disk bit for bit."""

import random
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import pytest

from flax_vae.convert.files import BucketLock, as_path, exists_at, list_at, write_at
from flax_vae.convert.files.manifest import MANIFEST
from flax_vae.train.build import make_components, make_state
from flax_vae.train.config.schema import OptimConfig
from flax_vae.train.devices import make_parallel
from flax_vae.train.report.metrics_log import read_metrics
from flax_vae.train.run.checkpoints import Checkpoints
from flax_vae.train.run.directory import RunDirectory
from tests.packed import pack
from tests.train.devices.test_processes import finish
from tests.train.run.test_interruptions import fingerprints
from tests.train.runs import Trainers, start

KILLS = 10
TOUCHES = (60, 350)  # range of requests of gcsfs before a trainer is killed; enough for several checkpoints


@pytest.fixture
def recipe(small):
    return replace(
        small,
        model=replace(small.model, ch_mult=(1,)),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=4, ema_decay=0.9),
        steps=24,
        log_every=1,
        eval_every=1000,
        save_every=2,
    )


@pytest.mark.slow
def test_killed_and_stopped_runs_in_a_bucket_equal_an_uninterrupted_one_on_a_disk(recipe, folder, bucket, tmp_path):
    straight, remote = tmp_path / "straight", f"{bucket}/{tmp_path.name}/run"
    tar = Path(pack(folder, "tar", tmp_path))
    write_at(f"{bucket}/{tmp_path.name}/images.tar", tar.read_bytes())
    for place, images in ((straight, str(tar)), (as_path(remote), f"{bucket}/{tmp_path.name}/images.tar")):
        RunDirectory(place).begin(replace(recipe, data=replace(recipe.data, folder=images)))
    moments, unfinished = random.Random(1), 0
    with Trainers() as trainers:
        end = trainers(straight)
        assert end.status == 0, end.output
        with BucketLock(as_path(remote)):
            end = trainers(remote)
            assert end.status == 1 and "is held by process" in end.output.splitlines()[-1]
        for touch in [8, *(moments.randint(*TOUCHES) for _ in range(KILLS - 1))]:
            end = trainers(remote, signal.SIGKILL, touch)
            assert end.status == -signal.SIGKILL, end.output
            steps = [entry.name for entry in list_at(f"{remote}/checkpoints")]
            unfinished += not all(exists_at(f"{remote}/checkpoints/{step}/{MANIFEST}") for step in steps)
        assert 1 <= unfinished < KILLS  # some during a save, some between saves
        end = trainers(remote, signal.SIGTERM, 120)
        assert end.status == 128 + signal.SIGTERM, end.output
        assert "resumed after step" in end.output
        end = trainers(remote)
        assert end.status == 0, end.output
    expected, found = fingerprints(straight, recipe), fingerprints(as_path(remote), recipe)
    assert len(expected[0]) > 60
    assert found == expected
    names = [entry.name for entry in list_at(remote)]
    assert "report.html" in names and not [name for name in names if name.startswith(".lock")]


@pytest.mark.slow
def test_two_processes_in_a_bucket_stop_together_and_end_as_one_process_on_a_disk(recipe, bucket, tmp_path):
    # The number of steps, which differs, must not change the learning rate.
    optim = replace(recipe.optim, schedule="constant", warmup_steps=0)
    recipe = replace(recipe, steps=6, save_every=100, parallel="mesh", zero=True, optim=optim)
    straight, remote = RunDirectory(tmp_path / "straight"), RunDirectory(as_path(f"{bucket}/{tmp_path.name}/run"))
    straight.begin(recipe)
    remote.begin(replace(recipe, steps=100_000))
    both = start(str(remote.path), devices=2, count=2)
    end = time.monotonic() + 240
    while not exists_at(remote.metrics):
        assert all(process.poll() is None for process in both), finish(both)[1]
        assert time.monotonic() < end
        time.sleep(0.5)
    both[1].send_signal(signal.SIGUSR1)
    statuses, outputs = finish(both)
    assert statuses == [128 + signal.SIGTERM] * 2, outputs
    (saved,) = remote.steps
    assert saved >= 1
    steps = saved + 2
    for run in (straight, remote):
        run.begin(replace(recipe, steps=steps))
    statuses, outputs = finish(start(str(remote.path), devices=2, count=2))
    assert statuses == [0, 0] and f"resumed after step {saved} of {steps}" in outputs[0], outputs
    statuses, outputs = finish(start(straight.path, devices=2, count=2))
    assert statuses == [0, 0], outputs
    like = jax.eval_shape(partial(make_state, recipe, make_components(recipe)))
    place = make_parallel("mesh").replicated
    like = jax.tree.map(lambda leaf: leaf.update(sharding=place), like)
    states = []
    for run in (straight, remote):
        with Checkpoints(run.checkpoints) as checkpoints:
            states.append(jax.device_get(checkpoints.restore(steps, like)))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*map(jax.tree.leaves, states), strict=True))
    assert [row["step"] for row in read_metrics(remote.metrics)] == [*range(1, steps + 1)]
