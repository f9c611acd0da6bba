"""Tests of the learning-rate schedule and of AdamW's masks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.train.config.schema import OptimConfig
from flax_vae.train.optim import make_optimizer, make_schedule

CONFIG = OptimConfig(learning_rate=0.5, warmup_steps=10, final_fraction=0.1)


def test_schedule_rises_linearly_and_falls_along_a_cosine():
    schedule = make_schedule(CONFIG, steps=110)
    assert schedule(0) == pytest.approx(0.05)
    assert schedule(4) == pytest.approx(0.25)
    assert schedule(9) == pytest.approx(0.5)
    assert schedule(59) == pytest.approx(0.5 * (0.1 + 0.9 * 0.5))
    assert schedule(109) == pytest.approx(0.05)
    values = [float(schedule(step)) for step in range(110)]
    assert values[:10] == sorted(values[:10])
    assert values[9:] == sorted(values[9:], reverse=True)


def test_warmup_takes_at_most_half_of_a_short_run():
    assert float(make_schedule(CONFIG, steps=4)(1)) == pytest.approx(0.5)
    assert np.isfinite(float(make_schedule(CONFIG, steps=1)(0)))


def test_zero_warmup_steps_start_at_the_peak():
    schedule = make_schedule(OptimConfig(learning_rate=0.5, warmup_steps=0), steps=100)
    assert schedule(0) == pytest.approx(0.5, rel=1e-3)


def test_weight_decay_applies_to_kernels_and_gradients_are_clipped():
    config = OptimConfig(learning_rate=0.5, warmup_steps=0, weight_decay=0.1, clip_norm=1.0)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = make_optimizer(config, steps=10_000)

    still, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(still["kernel"], -0.5 * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(still["bias"], 0.0)

    grads = jax.tree.map(lambda leaf: 1e6 * jnp.ones_like(leaf), params)
    _, opt_state = optimizer.update(grads, optimizer.init(params), params)
    first_moment = opt_state[1][0].mu
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(first_moment)))
    assert norm == pytest.approx((1 - config.b1) * 1.0, rel=1e-5)


def test_eps_is_added_to_the_root_of_the_second_moment():
    config = OptimConfig(learning_rate=0.5, warmup_steps=0, weight_decay=0.0, clip_norm=1e9, eps=3.0)
    optimizer = make_optimizer(config, steps=10_000)
    params = {"bias": jnp.ones(2)}
    update, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(update["bias"], -0.5 * 1 / (1 + 3), rtol=1e-6)


def test_parts_have_learning_rates_of_their_own():
    """Equals optimisers of these rates for each part, decay included; the state is that of one rate for all."""
    config = OptimConfig(learning_rate=0.5, warmup_steps=2, weight_decay=0.1, clip_norm=1e9)
    params = {"decoder": {"conv_out": {"kernel": jnp.ones((2, 2))}}, "encoder": {"kernel": jnp.ones((2, 2))}}
    plain = make_optimizer(config, steps=10)
    both = make_optimizer(config, steps=10, factors={"decoder/conv_out/kernel": 0.01})
    slow = make_optimizer(replace(config, learning_rate=0.005), steps=10)
    states = {name: one.init(params) for name, one in {"plain": plain, "both": both, "slow": slow}.items()}
    for _ in range(3):
        fast_update, states["plain"] = plain.update(params, states["plain"], params)
        slow_update, states["slow"] = slow.update(params, states["slow"], params)
        update, states["both"] = both.update(params, states["both"], params)
        np.testing.assert_array_equal(update["encoder"]["kernel"], fast_update["encoder"]["kernel"])
        leaf = [tree["decoder"]["conv_out"]["kernel"] for tree in (update, slow_update)]
        np.testing.assert_allclose(*leaf, rtol=1e-6)
    assert jax.tree.structure(states["both"]) == jax.tree.structure(states["plain"])
