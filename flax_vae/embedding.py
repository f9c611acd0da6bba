"""Sinusoidal time embedding.

Twins: `torch_ref.embedding` and `flax_vae.embedding`.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flax_vae.ops import broadcast

# One vector per image; None for a model without time.
TimeEmb = Float[Array, "b t"] | None


def sinusoidal_embedding(time: Float[Array, " b"], dim: int) -> Float[Array, "b t"]:
    """Expands one scalar per image into `dim / 2` cosines and `dim / 2` sines.

    Column i is `cos(time * 10000^(-2i/dim))`, column `dim/2 + i` the sine of that angle; times between about 0 and
    1000 use the whole range of frequencies.

    Source: Vaswani et al. 2017; openai/guided-diffusion `nn.py::timestep_embedding`.
    """
    half = dim // 2
    exponents = np.arange(half, dtype=np.float64) / half
    frequencies = jnp.asarray(np.exp(-math.log(10_000.0) * exponents), time.dtype)
    angles = broadcast(time.reshape(-1, 1), (len(time), half)) * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
