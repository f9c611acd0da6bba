"""Gradients under `jax.shard_map`, which checks over which devices every array varies."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from flax_vae import AutoEncoder
from flax_vae.ops.attention_tiles import Tile, tiled_attention
from flax_vae.ops.convolution import convolve
from tests.flax_vae.random_models import PLAIN, quick_jit, random_inputs, random_params

pytestmark = pytest.mark.usefixtures("x64")

SHARED, SPLIT = PartitionSpec(), PartitionSpec("images")


def assert_equal_gradients(loss, shared, split):
    """Compares one device and two, which sum the gradient by what they share."""
    gradient, specs = jax.grad(loss, (0, 1)), (SHARED, SPLIT)
    mesh = Mesh(np.array(jax.devices()[:2]), ("images",))
    both = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=specs)
    expected, found = (jax.tree.leaves(quick_jit(function)(shared, split)) for function in (gradient, both))
    scale = max(np.abs(leaf).max() for leaf in expected)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12 * scale)


def test_a_model():
    model = AutoEncoder(replace(PLAIN, ch_mult=(1, 1)), dtype=jnp.float64)
    images, _ = random_inputs(model.params, (2, 6, 8), 3)

    def loss(params, images):
        return jnp.sum(model.apply({"params": params}, images, sample=False) ** 2)

    assert_equal_gradients(loss, random_params(model, "float64"), jnp.asarray(images, jnp.float64))


@pytest.mark.parametrize("tile", [Tile(8, 8), Tile(20, 8)])
def test_tiles(tile):
    q, scale = jnp.asarray(np.random.default_rng(0).standard_normal((2, 20, 4))), jnp.linspace(0.5, 1.5, 4)[None, None]
    assert_equal_gradients(lambda w, q: jnp.sum(tiled_attention(q, q * w, q - w, tile) ** 2), scale, q)


@pytest.mark.parametrize(("side", "channels"), [(70, 32), (6, 32), (6, 3)])
def test_kernel_gradients(side, channels):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape)) for shape in ((2, side, side, channels), (3, 3, channels, 4)))
    assert_equal_gradients(lambda kernel, x: jnp.sum(convolve(x, kernel, (1, 1), ((1, 1),) * 2) ** 2), kernel, x)
