"""What the libraries of a GPU compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.attention import CUDNN_CHANNELS, attention, full_attention
from flax_vae.ops.upsampling import upsample_and_convolve

pytestmark = pytest.mark.gpu


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape), "bfloat16") for shape in shapes]


@pytest.mark.parametrize("channels", [64, CUDNN_CHANNELS])
def test_cudnn_attends_as_the_full_matrix(channels):
    *qkv, d_out = draw(*[(2, 512, channels)] * 4)
    (ours, back), (full, full_back) = (
        jax.vjp(lambda *qkv, way=way: way(*qkv), *qkv) for way in (attention, full_attention)
    )
    assert "cudnn" in jax.jit(attention).lower(*qkv).as_text()
    for one, other in zip((ours, *back(d_out)), (full, *full_back(d_out)), strict=True):
        expected = np.asarray(other, "float32")
        np.testing.assert_allclose(np.asarray(one, "float32"), expected, rtol=0, atol=0.05 * expected.std())


def test_upsampling_is_a_gradient_of_cudnn():
    x, kernel = draw((2, 16, 16, 64), (3, 3, 64, 64))
    program = jax.jit(lambda *inputs: upsample_and_convolve(*inputs, (1, 1), ((1, 1), (1, 1))))
    assert "convBackwardInput" in program.lower(x, kernel).compile().as_text()
