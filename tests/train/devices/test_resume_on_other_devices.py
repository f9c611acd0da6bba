"""A checkpoint can be resumed with another parallel mode, sharded or replicated, on fewer devices."""

from dataclasses import replace
from functools import cache, partial

import jax
import numpy as np
import pytest

from flax_vae.train.build import make_components, make_state
from flax_vae.train.config.schema import DataConfig, GanConfig, OptimConfig, TrainConfig
from flax_vae.train.devices.parallel import make_parallel
from flax_vae.train.run.checkpoints import Checkpoints
from flax_vae.train.step import train_step
from tests.train.conftest import SMALL

CONFIG = TrainConfig(
    model=replace(SMALL, ch_mult=(1,), attn_levels=()),
    data=DataConfig(crop_size=16),
    optim=OptimConfig(warmup_steps=0, ema_decay=0.9),
    gan=GanConfig(weight=0.5, start=1, features=8, layers=1),
    batch_size=2,
)
LAYOUTS = {
    "pmap": {"mode": "pmap"},
    "mesh": {"mode": "mesh"},
    "zero": {"mode": "mesh", "zero": True},
    "one device": {"mode": "pmap", "devices": jax.devices()[:1]},
}


def layout(name):
    return make_parallel(**LAYOUTS[name])


@cache
def shapes(config):
    return jax.eval_shape(partial(make_state, config, make_components(config)))


@pytest.fixture(scope="module")
def state():
    """Returns a state without equal values, so that exchanged leaves are detected."""
    leaves, structure = jax.tree.flatten(shapes(CONFIG))
    rng = np.random.default_rng(0)
    # Second moments and variances must be positive, and counts plausible.
    draw = lambda leaf: rng.uniform(0.1, 1, leaf.shape) if leaf.ndim else np.ones(())  # noqa: E731
    return structure.unflatten([np.asarray(draw(leaf), leaf.dtype) for leaf in leaves])


def restored(folder, parallel, config):
    like = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes(config), parallel.shardings(shapes(config)),
    )  # fmt: skip
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(1, like)


def assert_equal(ours, theirs):
    for (path, one), other in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("before", LAYOUTS)
def test_restored_state_equals_the_saved_one_bit_for_bit(before, state, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, layout(before).place_state(state), CONFIG, wait=True)
    for after in LAYOUTS:
        parallel = layout(after)
        moved = restored(tmp_path, parallel, CONFIG)
        assert_equal(moved, state)
        for leaf, place in zip(jax.tree.leaves(moved), jax.tree.leaves(parallel.shardings(state)), strict=True):
            assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    shared = [leaf for leaf in jax.tree.leaves(restored(tmp_path, layout("zero"), CONFIG).ema) if leaf.ndim == 4]
    assert not any(leaf.is_fully_replicated for leaf in shared)


def test_a_run_resumes_on_other_devices_with_an_equal_update(tmp_path):
    config = replace(CONFIG, gan=GanConfig())  # test_parallel.py has updates with a discriminator
    components = make_components(config)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, layout("zero").place_state(make_state(config, components)), config, wait=True)
    ends = {}
    for name in ("zero", "one device"):
        parallel = layout(name)
        step = parallel.compile(partial(train_step, components=components, config=config))
        state, scores = step(restored(tmp_path, parallel, config), parallel.place_batch(images), {})
        ends[name] = jax.device_get((scores, state.opt_state))
    for score, value in ends["zero"][0].items():
        np.testing.assert_allclose(ends["one device"][0][score], value, rtol=1e-4, err_msg=score)
    # Compare moments, because Adam's first update is a sign even where a gradient is pure rounding.
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(ends["zero"][1]) if leaf.dtype == np.float32)
    for ours, theirs in zip(*(jax.tree.leaves(end[1]) for end in ends.values()), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6 * size)
