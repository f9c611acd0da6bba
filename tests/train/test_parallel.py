"""Two ways to compile one step: on two devices, on one, with and without noise, they must all agree."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from flax_vae import AutoEncoder
from train.config import LossConfig
from train.errors import TrainError
from train.parallel import PARALLEL
from train.state import create_state
from train.step import example_noise, train_step

from .conftest import SMALL

STEPS = 3
MODEL = replace(SMALL, ch_mult=(1,))


def run(mode, devices, sample):
    """Three updates; the final state and all scores."""
    parallel = PARALLEL[mode](jax.local_devices()[:devices])
    # Plain descent keeps rounding rounding; Adam's first updates are all signs, and would blow it up.
    model, optimizer, schedule = AutoEncoder(MODEL), optax.sgd(0.1), optax.constant_schedule(0.1)
    loss = LossConfig(kl_weight=1e-2, sample=sample)
    traced = []

    def counted(state, batch, **axis):
        traced.append(batch.shape)
        return train_step(state, batch, model=model, optimizer=optimizer, schedule=schedule, loss=loss, seed=0, **axis)

    step = parallel.compile(counted)
    state = parallel.place_state(create_state(model, optimizer, 0))
    images = np.random.default_rng(0).uniform(-1, 1, (STEPS, 4, 16, 16, 3)).astype(np.float32)
    history = []
    with jax.transfer_guard("disallow"):
        for batch in images:
            state, scores = step(state, parallel.place_batch(batch))
            history.append(jax.device_get(scores))
    assert len(traced) == 1  # compiled once
    return state, history


@pytest.fixture(scope="module")
def runs():
    cases = [("pmap", 1, True), ("pmap", 2, True), ("mesh", 2, True), ("pmap", 2, False), ("mesh", 2, False)]
    return {case: run(*case) for case in cases}


def assert_alike(one, other):
    """The same scores and weights, to float32 rounding."""
    for ours, theirs in zip(one[1], other[1], strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)
    for ours, theirs in zip(jax.tree.leaves(one[0].params), jax.tree.leaves(other[0].params), strict=True):
        np.testing.assert_allclose(jax.device_get(ours), jax.device_get(theirs), rtol=1e-4, atol=1e-6)


def test_pmap_equals_mesh_without_noise(runs):
    assert_alike(runs["pmap", 2, False], runs["mesh", 2, False])


def test_pmap_equals_mesh_and_one_device_with_noise(runs):
    assert_alike(runs["pmap", 2, True], runs["mesh", 2, True])
    assert_alike(runs["pmap", 2, True], runs["pmap", 1, True])


def test_noise_changes_the_loss(runs):
    assert runs["pmap", 2, True][1][0]["loss"] != runs["pmap", 2, False][1][0]["loss"]


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_all_devices_hold_the_same_state_bit_for_bit(runs, mode):
    state, _ = runs[mode, 2, True]
    for leaf in jax.tree.leaves(state):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 2
        assert copies[0].shape == leaf.shape
        np.testing.assert_array_equal(copies[0], copies[1])


def test_each_example_has_its_own_noise_whatever_the_device():
    key = jax.random.key(0)
    whole = np.asarray(example_noise(key, 0, np.zeros((4, 2, 2, 3), np.float32)))
    second_half = np.asarray(example_noise(key, 2, np.zeros((2, 2, 2, 3), np.float32)))
    np.testing.assert_array_equal(whole[2:], second_half)
    assert len({example.tobytes() for example in whole}) == 4
    assert abs(np.asarray(example_noise(key, 0, np.zeros((64, 8, 8, 4), np.float32))).std() - 1) < 0.02


def test_each_device_draws_its_own_noise_inside_pmap():
    def draw(like):
        first = like.shape[0] * jax.lax.axis_index("data")
        return example_noise(jax.random.key(0), first, like)

    noise = np.asarray(jax.pmap(draw, axis_name="data")(np.zeros((2, 2, 2, 2, 3), np.float32)))
    assert len({example.tobytes() for example in noise.reshape(4, -1)}) == 4


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_numbers_that_stayed_on_the_host_are_refused_inside_the_loop(mode):
    parallel = PARALLEL[mode]()
    step = parallel.compile(lambda state, batch, axis_name=None: (state, batch.sum()))
    state = parallel.place_state(np.float32(0))
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed host-to-device"):
        step(state, np.zeros((2, 1), np.float32))


def test_a_batch_that_cannot_be_shared_is_refused(small):
    with pytest.raises(TrainError, match="batch_size=3 cannot be shared evenly by 2 devices; use a multiple of 2"):
        PARALLEL["pmap"]().check_batch_size(replace(small, batch_size=3).batch_size)
