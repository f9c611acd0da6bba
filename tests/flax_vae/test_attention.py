"""Every way to compute attention gives the same numbers and gradients; tiles need memory linear in the positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae import attention as module
from flax_vae.attention import attention, full_attention
from flax_vae.ops.attention_tiles import Tile, tiled_attention


def draw(n, m, c, dtype, batch=2):
    rng = np.random.default_rng(0)
    q, d_out = (jnp.asarray(rng.standard_normal((batch, n, c)), dtype) for _ in range(2))
    k, v = (jnp.asarray(rng.standard_normal((batch, m, c)), dtype) for _ in range(2))
    return (q, k, v), d_out


def values_and_gradients(function, inputs, d_out):
    out, back = jax.vjp(function, *inputs)
    return out, *back(d_out)


@pytest.mark.parametrize(
    ("n", "m", "tile"),
    [
        (37, 37, Tile(16, 8)),  # neither size divides: the last keys are masked, the last queries thrown away
        (32, 48, Tile(16, 16)),
        (5, 33, Tile(64, 11)),
        (33, 5, Tile(8, 64)),
        (1, 1, Tile(4, 4)),
    ],
)
def test_tiles_are_the_full_matrix(x64, n, m, tile):
    inputs, d_out = draw(n, m, 8, "float64")
    ours = values_and_gradients(lambda *qkv: tiled_attention(*qkv, tile), inputs, d_out)
    for x, y in zip(ours, values_and_gradients(full_attention, inputs, d_out), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-13)


def test_the_largest_score_may_come_last_and_be_huge(x64):
    inputs, d_out = draw(6, 40, 8, "float64")
    q, k, v = inputs
    inputs = q, k * jnp.linspace(1, 300, 40)[None, :, None], v
    ours = values_and_gradients(lambda *qkv: tiled_attention(*qkv, Tile(4, 8)), inputs, d_out)
    for x, y in zip(ours, values_and_gradients(full_attention, inputs, d_out), strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-11)


def test_half_precision_does_not_overflow():
    """Products of 512 channels of 300 * 300 are beyond float16's 65,504."""
    q = jnp.full((1, 12, 512), 300, jnp.float16)
    v = jnp.asarray(np.random.default_rng(0).standard_normal((1, 12, 512)), jnp.float16)
    for path in (full_attention, lambda *qkv: tiled_attention(*qkv, Tile(8, 8))):
        out, *gradients = values_and_gradients(path, (q, q, v), v)
        np.testing.assert_allclose(out, np.broadcast_to(v.mean(1, keepdims=True), v.shape), atol=2e-3)
        assert all(np.isfinite(gradient).all() and gradient.dtype == "float16" for gradient in gradients)


@pytest.mark.parametrize("path", ["auto", "full", "tiles"])
def test_every_path_of_the_one_function(monkeypatch, path):
    monkeypatch.setattr(module, "CPU_TILE", Tile(7, 5))
    inputs, d_out = draw(20, 20, 8, "float32")
    ours = values_and_gradients(lambda *qkv: attention(*qkv, path=path), inputs, d_out)
    for x, y in zip(ours, values_and_gradients(full_attention, inputs, d_out), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


def test_an_unknown_path_is_refused():
    inputs, _ = draw(2, 2, 8, "float32")
    with pytest.raises(ValueError, match="path='flash' must be one of 'auto', 'full', 'tiles', 'cudnn'"):
        attention(*inputs, path="flash")


def test_cudnn_gets_one_head(monkeypatch):
    """cuDNN needs a GPU; what is handed to it does not."""
    inputs, _ = draw(6, 6, 8, "float32")

    def stand_in(q, k, v, *, implementation):
        assert implementation == "cudnn" and q.shape == (2, 6, 1, 8)
        return original(q, k, v, implementation="xla")

    original = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    np.testing.assert_allclose(attention(*inputs, path="cudnn"), full_attention(*inputs), atol=1e-6)


def backward_bytes(path, n):
    """Temporaries of a forward and backward pass, by the compiler's own account."""
    qkv = [jax.ShapeDtypeStruct((1, n, 16), "float32")] * 3
    back = jax.jit(jax.grad(lambda *qkv: attention(*qkv, path=path).sum(), (0, 1, 2)))
    return back.lower(*qkv).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.cpu  # whose tiles it is about
def test_memory_grows_with_the_positions_and_not_with_their_square(optimised):
    n, tile = 2**16, 4 * module.CPU_TILE.queries * module.CPU_TILE.keys
    grown = backward_bytes("tiles", n) - backward_bytes("tiles", n // 4)
    assert grown < 40 * 4 * 16 * n  # a few dozen arrays as large as q
    assert backward_bytes("tiles", n) < grown + 8 * tile < n * n  # a quarter of the scores' 4 bytes each
    assert backward_bytes("full", 2**12) > 4 * 2**24  # the control: there they are


def test_accelerators_get_large_products_within_the_budget():
    """Compiled for a TPU without one: the keys are cut so that the scores stay within the bytes allowed."""
    qkv = [jax.ShapeDtypeStruct((2, 512, 64), "float32")] * 3  # in half precision, a GPU here would take cuDNN's kernel

    def program(scores_bytes):
        traced = jax.jit(lambda *qkv: attention(*qkv, scores_bytes=scores_bytes)).trace(*qkv)
        return traced.lower(lowering_platforms=("tpu",)).as_text()

    assert "2x512x512xf32" in program(2**21)
    assert "2x512x512xf32" not in program(2**20) and "2x512x256xf32" in program(2**20)
