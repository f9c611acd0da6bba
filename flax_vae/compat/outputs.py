"""Results of the former Flax classes, as pytrees: they cross `jit`, `pmap` and `vmap`."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from flax_vae.convert.errors import ArgumentError
from flax_vae.gaussian import DiagonalGaussian, Posterior


class _Output:
    """Access by name and by position, as to diffusers' results."""

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the fields in order."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))  # pyright: ignore[reportArgumentType]

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


@struct.dataclass(init=False)
class FlaxDiagonalGaussianDistribution(Posterior):
    """Posterior of raw, unscaled latents, `b h w z`, whose logvar lies in [-30, 20].

    Source: diffusers 0.39 `models/vae_flax.py`.
    """

    def __init__(
        self,
        parameters: Float[Array, "b h w 2*z"] | None = None,
        deterministic: bool = False,
        *,
        mean: Any = None,
        logvar: Any = None,
    ):
        """Splits moments, as diffusers' class does.

        Args:
          parameters: Mean and logvar, concatenated along the last axis.
          deterministic: False; the mode of a posterior needs no other class.
          mean: Mean, in place of `parameters`; JAX and `replace` pass it.
          logvar: Logvar, in place of `parameters`; not limited.

        Raises:
          ValueError: If `deterministic` is not False.
        """
        if deterministic is not False:
            raise ArgumentError(
                "FlaxDiagonalGaussianDistribution takes moments, mean and logvar concatenated along the last axis, and "
                "deterministic=False; for the mean alone, call mode()",
                field="deterministic",
            )
        if parameters is not None:
            limited = DiagonalGaussian(clamp_logvar=True, parent=None)
            posterior = cast(Posterior, limited.apply({}, parameters, method="posterior"))
            mean, logvar = posterior.mean, posterior.logvar
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "logvar", logvar)

    @property
    def deterministic(self) -> bool:
        """False, as for every posterior that `encode` returns."""
        return False

    @property
    def var(self) -> Float[Array, "b h w z"]:
        """Variance, with the shape of the mean."""
        return jnp.exp(self.logvar)

    def sample(self, key: PRNGKeyArray) -> Float[Array, "b h w z"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns a latent sampled with `key`; the noise is float32, whatever the dtype of the mean."""
        return super().sample(noise=jax.random.normal(key, self.mean.shape))

    def kl(self, other: Posterior | None = None) -> Float[Array, " b"]:
        """Returns the KL divergence from another posterior, or from the standard normal, in nats per image.

        Args:
          other: Other posterior; None stands for the standard normal.
        """
        if other is None:
            return super().kl()
        terms = ((self.mean - other.mean) ** 2 + self.var) / jnp.exp(other.logvar) - 1.0 - self.logvar + other.logvar
        return 0.5 * jnp.sum(terms, axis=(1, 2, 3))

    def nll(
        self, sample: Float[Array, "b h w z"], axis: int | tuple[int, ...] | list[int] | None = (1, 2, 3)
    ) -> Float[Array, "..."]:
        """Returns the negative log-likelihood of a latent in nats, summed over `axis`; None sums over all axes.

        Args:
          sample: Latent.
          axis: Axes that are summed over.

        Raises:
          ValueError: If the sample has another shape than the mean.
        """
        if sample.shape != self.mean.shape:
            raise ArgumentError(
                f"the sample has shape {sample.shape}; expected that of the mean, {self.mean.shape}; pass `b h w z`",
                field="sample",
                value=sample.shape,
            )
        terms = jnp.log(2.0 * jnp.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * jnp.sum(terms, axis=tuple(axis) if isinstance(axis, list) else axis)


@struct.dataclass
class FlaxAutoencoderKLOutput(_Output):
    """Result of `FlaxAutoencoderKL.encode`.

    Attributes:
      latent_dist: Posterior of the images.
    """

    latent_dist: FlaxDiagonalGaussianDistribution


@struct.dataclass
class FlaxDecoderOutput(_Output):
    """Result of `FlaxAutoencoderKL.decode`.

    Attributes:
      sample: Images, `b c h w`, nominally in [-1, 1].
    """

    sample: Float[Array, "b c h w"]
