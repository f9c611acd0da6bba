"""The diagonal Gaussian between encoder and decoder.

Twins: `torch_ref.gaussian` and `flax_vae.gaussian`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.typing import Dtype
from jaxtyping import Array, Float, PRNGKeyArray

from flax_vae.convert.architecture import LOGVAR_MAX, LOGVAR_MIN, check_noise
from flax_vae.convert.errors import ArgumentError
from flax_vae.ops import add


@struct.dataclass
class Posterior:
    """Posterior of raw, unscaled latents: one mean and variance per latent value.

    Attributes:
      mean: Mean, `b h w z`.
      logvar: Natural logarithm of the variance, `b h w z`.

    Examples:
      >>> posterior = Posterior(mean=jnp.ones((1, 2, 2, 4)), logvar=jnp.zeros((1, 2, 2, 4)))
      >>> posterior.sample(jax.random.key(0)).shape
      (1, 2, 2, 4)
      >>> posterior.kl()
      Array([8.], dtype=float32)
    """

    mean: Float[Array, "b h w z"]
    logvar: Float[Array, "b h w z"]

    @property
    def std(self) -> Float[Array, "b h w z"]:
        """Standard deviation, with the shape of the mean."""
        return jnp.exp(0.5 * self.logvar)

    def mode(self) -> Float[Array, "b h w z"]:
        """Returns the most probable latent, which is the mean."""
        return self.mean

    def sample(
        self, key: PRNGKeyArray | None = None, *, noise: Float[Array, "b h w z"] | None = None
    ) -> Float[Array, "b h w z"]:
        """Returns a latent sampled with `key`, or `mean + std * noise` with the given noise.

        Args:
          key: PRNG key.
          noise: Standard normal noise, with the shape of the mean.

        Raises:
          ValueError: If none or both of the two are given.
        """
        if key is not None and noise is None:
            # In bfloat16, `jax.random.normal` returns only 128 different values.
            noise = jax.random.normal(key, self.mean.shape, jnp.promote_types(self.mean.dtype, jnp.float32))
            noise = noise.astype(self.mean.dtype)
        elif key is not None or noise is None:
            raise ArgumentError("sample() takes a key or noise=; pass exactly one of them")
        return self.mean + self.std * noise

    def kl(self) -> Float[Array, " b"]:
        """Returns the KL divergence from the standard normal, in nats per image: `0.5 * sum(mean² + var - 1 - logvar)`.

        Source: Kingma & Welling 2014, appendix B; CompVis/latent-diffusion `distributions.py`.
        """
        return 0.5 * jnp.sum(self.mean**2 + jnp.exp(self.logvar) - 1.0 - self.logvar, axis=(1, 2, 3))


class DiagonalGaussian(nn.Module):
    """Splits moments into mean and logvar and samples a latent.

    Attributes:
      sample: Whether a call samples, with the rng stream `"sample"`; otherwise it returns the mean.
      chunk_dim: Axis along which mean and logvar are concatenated.
      learnable_logvar: Whether a learned scalar `logvar_scaling` is *added* to logvar; it multiplies the variance by
        `exp(logvar_scaling)`.
      clamp_logvar: Whether logvar is then limited to [-30, 20].
      param_dtype: Dtype of the parameter.

    Source: seed module 7; the limits are CompVis/latent-diffusion's, `distributions.py`.
    """

    sample: bool = True
    chunk_dim: int = -1
    learnable_logvar: bool = False
    clamp_logvar: bool = False
    param_dtype: Dtype = jnp.float32

    def setup(self):
        if self.learnable_logvar:
            self.logvar_scaling = self.param("logvar_scaling", nn.initializers.zeros, (1,), self.param_dtype)

    def posterior(self, moments: Float[Array, "b h w 2*z"]) -> Posterior:
        """Returns the posterior of moments.

        Args:
          moments: Means and logvars, one after the other along the channels.
        """
        mean, logvar = jnp.split(moments, 2, axis=self.chunk_dim)
        if self.learnable_logvar:
            logvar = add(logvar, self.logvar_scaling)
        if self.clamp_logvar:
            logvar = _clamp(logvar, LOGVAR_MIN, LOGVAR_MAX)
        return Posterior(mean, logvar)

    def __call__(
        self,
        moments: Float[Array, "b h w 2*z"],
        *,
        sample: bool | None = None,
        noise: Float[Array, "b h w z"] | None = None,
    ) -> Float[Array, "b h w z"]:
        """Returns a raw latent: a sample (with the given `noise`, if any), or the mean.

        Args:
          moments: Mean and logvar, concatenated along `chunk_dim`.
          sample: Whether to sample; None uses the attribute.
          noise: Standard normal noise with the shape of the latent.

        Raises:
          ValueError: If `noise` has another shape, or is given without sampling; if neither noise nor a key is given
            for sampling.
        """
        posterior = self.posterior(moments)
        sample = self.sample if sample is None else sample
        check_noise(None if noise is None else noise.shape, sample, posterior.mean.shape)
        if not sample:
            return posterior.mode()
        return posterior.sample(self._sample_key() if noise is None else None, noise=noise)

    def _sample_key(self) -> PRNGKeyArray:
        if not (self.has_rng("sample") or self.is_initializing()):
            raise ArgumentError(
                'sampling needs random numbers; pass rngs={"sample": key} to apply, or noise=, or sample=False for the '
                "mean"
            )
        return self.make_rng("sample")


def _clamp(x: Array, low: float, high: float) -> Array:
    """Limits `x` with the gradient of `torch.clamp`: 1 inside and on the limits, 0 outside and where x is NaN."""
    # The gradient of `jnp.clip` is one half on the limits.
    return jnp.where((x >= low) & (x <= high), x, jax.lax.stop_gradient(jnp.clip(x, low, high)))
