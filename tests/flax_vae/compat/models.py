"""A small model with random parameters, norms too, for the tests of `flax_vae.compat`."""

import jax
import jax.numpy as jnp
import numpy as np

from flax_vae.compat import FlaxAutoencoderKL

IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 24)).astype(np.float32)


def small(**fields) -> FlaxAutoencoderKL:
    fields = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "sample_size": 16,
    } | fields
    return FlaxAutoencoderKL(**fields)


def random_params(vae: FlaxAutoencoderKL, seed: int = 0) -> dict:
    shapes = jax.eval_shape(vae.init_weights, jax.random.key(0))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return jnp.asarray(noise / np.sqrt(np.prod(leaf.shape[:-1])))
        return jnp.asarray((path[-1].key == "scale") + 0.2 * noise)

    return jax.tree_util.tree_map_with_path(draw, shapes)
