"""Converts between raw latents and the latents that diffusion models are trained on.

Twins: `torch_ref.latents` and `flax_vae.latents`.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from flax_vae.convert.architecture import Architecture


class LatentNorm(nn.Module):
    """Normalises latents as FLUX.2 does: gathers 2 x 2 patches into channels and uses running statistics.

    The statistics are stored as parameters, so that one tree is the whole model; their gradient is zero.

    Attributes:
      channels: Channels of the patched latent, `4 * z_channels`, in the order `(c pi pj)`.
      eps: Number that is added to each variance.
      param_dtype: Dtype of the statistics.

    Source: black-forest-labs/flux2 `autoencoder.py`; diffusers `AutoencoderKLFlux2`.
    """

    channels: int
    eps: float = 1e-4
    param_dtype: Dtype = jnp.float32

    def setup(self):
        self.running_mean = self.param("running_mean", nn.initializers.zeros, (self.channels,), self.param_dtype)
        self.running_var = self.param("running_var", nn.initializers.ones, (self.channels,), self.param_dtype)

    def normalise(self, z: Float[Array, "b 2*h 2*w z"]) -> Float[Array, "b h w 4*z"]:
        """Returns the patched latent; subtracts each channel's running mean and divides by its standard deviation."""
        z = rearrange(z, "b (h pi) (w pj) c -> b h w (c pi pj)", pi=2, pj=2)
        return (z - self._mean(z)) / self._std(z)

    def denormalise(self, z: Float[Array, "b h w 4*z"]) -> Float[Array, "b 2*h 2*w z"]:
        """Returns the raw latent; the inverse of `normalise`."""
        z = z * self._std(z) + self._mean(z)
        return rearrange(z, "b h w (c pi pj) -> b (h pi) (w pj) c", pi=2, pj=2)

    def _mean(self, like: Array) -> Array:
        return jax.lax.stop_gradient(self.running_mean)[None, None, None, :].astype(like.dtype)

    def _std(self, like: Array) -> Array:
        variance = jax.lax.stop_gradient(self.running_var)[None, None, None, :]
        return jnp.sqrt(variance + self.eps).astype(like.dtype)


def channel_statistics(params: Architecture, like: Array) -> tuple[Array | float, Array | float]:
    """Returns what a latent is shifted by and divided by: numbers, or one for each channel, in the dtype of `like`."""
    if params.latent_mean is None or params.latent_std is None:
        return params.shift_factor, 1.0
    mean, std = (
        jnp.asarray(numbers, like.dtype)[None, None, None] for numbers in (params.latent_mean, params.latent_std)
    )
    return mean, std
