"""Our group normalisation beside linen's: values, gradients, digits, and what is kept for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flax_vae.ops import group_norm
from flax_vae.ops.group_norm import GroupNorm


def draw(dtype, mean=0.0, shape=(2, 5, 3, 12)):
    rng = np.random.default_rng(0)
    x = jnp.asarray(mean + rng.standard_normal(shape), dtype)
    channels = shape[-1]
    scale, bias = 1 + 0.2 * rng.standard_normal(channels), 0.2 * rng.standard_normal(channels)
    return {"scale": jnp.asarray(scale, dtype), "bias": jnp.asarray(bias, dtype)}, x


def linens(params, x):
    return nn.GroupNorm(4, epsilon=1e-6, use_fast_variance=False).apply({"params": params}, x)


def linens_with_swish(params, x):
    return jax.nn.silu(linens(params, x))


def ours(method):
    return lambda params, x: GroupNorm(4, 1e-6).apply({"params": params}, x, method=method)


@pytest.mark.parametrize(("method", "expected"), [("__call__", linens), ("with_swish", linens_with_swish)])
def test_values_and_gradients(x64, method, expected):
    inputs = draw("float64", mean=3.0)
    out, back = jax.vjp(ours(method), *inputs)
    theirs, their_back = jax.vjp(expected, *inputs)
    d_out = jnp.asarray(np.random.default_rng(1).standard_normal(out.shape))
    for x, y in zip(jax.tree.leaves((out, back(d_out))), jax.tree.leaves((theirs, their_back(d_out))), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)


def test_a_large_mean_costs_no_digits(x64):
    """The mean of the squares minus the square of the mean has no digit left here."""
    inputs = draw("float32", mean=1e4, shape=(1, 64, 64, 12))
    exact = linens_with_swish(*jax.tree.map(lambda leaf: leaf.astype("float64"), inputs))
    np.testing.assert_allclose(ours("with_swish")(*inputs), exact, atol=2e-3)
    fast = nn.GroupNorm(4, epsilon=1e-6).apply({"params": inputs[0]}, inputs[1])
    assert np.abs(jax.nn.silu(fast) - exact).max() > 0.1


def test_accelerators_correct_a_mean_that_lost_digits(monkeypatch):
    x = draw("float32", mean=1e4, shape=(1, 64, 64, 12))[1]
    exact = np.asarray(x, "float64").reshape(4096, 4, 3)
    mean, variance = (array.repeat(3) for array in (exact.mean((0, 2)), exact.var((0, 2))))

    def moments(corrected):
        lost = iter([0.006])
        monkeypatch.setattr(group_norm, "_group_mean", lambda *args: group_mean(*args) + next(lost, 0))
        return group_norm._moments(4, corrected, x)

    group_mean = group_norm._group_mean
    np.testing.assert_allclose(moments(True), [mean[None], variance[None]], rtol=0, atol=1e-3)
    assert np.abs(np.asarray(moments(False)[0]) - mean).max() > 5e-3


def test_half_precision_keeps_float32_statistics():
    params, x = draw("bfloat16", mean=100.0, shape=(1, 64, 64, 12))
    out = GroupNorm(4, 1e-6, dtype=jnp.bfloat16).apply({"params": params}, x)
    wide = jax.tree.map(lambda leaf: leaf.astype("float32"), (params, x))
    assert out.dtype == "bfloat16"
    np.testing.assert_allclose(np.asarray(out, "float32"), linens(*wide), atol=0.03)


def test_only_the_input_is_kept_for_the_backward_pass():
    params, x = draw("float32")
    _, back = jax.vjp(ours("with_swish"), params, x)
    maps = [leaf for leaf in jax.tree.leaves(back) if leaf.shape == x.shape]
    assert len(maps) == 1 and np.array_equal(maps[0], x)


def test_whoever_looks_inside_sees_the_norm_without_swish():
    params, x = draw("float32")
    _, state = GroupNorm(4, 1e-6).apply({"params": params}, x, method="with_swish", mutable=["intermediates"])
    np.testing.assert_allclose(state["intermediates"]["__call__"][0], linens(params, x), atol=1e-6)
