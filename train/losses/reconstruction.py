"""Reconstruction and KL losses of the autoencoder.

Shapes: images `b h w c` in [-1, 1].  Per value of an image the loss is `distance / exp(logvar) + logvar`, plus the KL
divergence divided by the number of values; `reduction="sum"` multiplies everything by that number, which is LDM's loss.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_vae import Posterior
from flax_vae.convert.errors import ArgumentError
from flax_vae.train.losses.features import Features, feature_distance
from flax_vae.train.losses.structure import structural_similarity

_CHARBONNIER_EPSILON = 1e-3

Perceptual = Callable[[Float[Array, "b h w c"], Float[Array, "b h w c"]], Float[Array, " b"]]


def l1(reconstruction: Float[Array, "b h w c"], images: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Returns the mean absolute difference per value, in units of the image, whose range is 2.

    Args:
      reconstruction: Reconstructed images, in [-1, 1].
      images: Original images, in [-1, 1].
    """
    return jnp.mean(jnp.abs(reconstruction - images))


def mse(reconstruction: Float[Array, "b h w c"], images: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Returns the mean squared difference per value.

    Args:
      reconstruction: Reconstructed images, in [-1, 1].
      images: Original images, in [-1, 1].
    """
    return jnp.mean((reconstruction - images) ** 2)


def charbonnier(reconstruction: Float[Array, "b h w c"], images: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Returns the mean of `sqrt(difference² + 1e-6)`, a smooth L1.

    Args:
      reconstruction: Reconstructed images, in [-1, 1].
      images: Original images, in [-1, 1].

    Source: Charbonnier et al. 1994; the constant of Lai et al. 2017 (LapSRN).
    """
    return jnp.mean(jnp.sqrt((reconstruction - images) ** 2 + _CHARBONNIER_EPSILON**2))


DISTANCES = {"l1": l1, "mse": mse, "charbonnier": charbonnier}
REDUCTIONS = ("mean", "sum")


def kl(posterior: Posterior, free_bits: float = 0.0) -> Float[Array, ""]:
    """Returns the mean KL divergence from the standard normal, in nats per image.

    Args:
      posterior: Posterior of each image.
      free_bits: Nats per latent value that cost nothing; a smaller divergence counts as this much, without gradient.

    Examples:
      >>> posterior = Posterior(mean=jnp.ones((2, 4, 4, 8)), logvar=jnp.zeros((2, 4, 4, 8)))
      >>> kl(posterior)
      Array(64., dtype=float32)

    Source: Kingma et al. 2016, appendix C.8, for single values instead of groups.
    """
    if free_bits == 0.0:
        return jnp.mean(posterior.kl())
    each = 0.5 * (posterior.mean**2 + jnp.exp(posterior.logvar) - 1.0 - posterior.logvar)
    return jnp.mean(jnp.sum(jnp.maximum(each, free_bits), axis=(1, 2, 3)))


def reconstruction_loss(
    reconstruction: Float[Array, "b h w c"],
    images: Float[Array, "b h w c"],
    divergence: Float[Array, ""],
    *,
    distance: str = "l1",
    kl_weight: float = 1e-6,
    perceptual: Perceptual | None = None,
    lpips_weight: float = 0.0,
    ssim_weight: float = 0.0,
    features: Features | None = None,
    features_weight: float = 0.0,
    logvar: Float[Array, ""] | None = None,
    reduction: str = "mean",
    values: int | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the loss without its adversarial part, and the terms of it by name.

    Under `pmap` and `shard_map` it is that of the device's own images; average it, or its gradients, over the devices.

    Args:
      reconstruction: Reconstructed images.
      images: Original images.
      divergence: KL divergence in nats per image, as returned by `kl`.
      distance: Distance of two values: `l1`, `mse` or `charbonnier`.
      kl_weight: Weight of the divergence.
      perceptual: Function that returns the distance of each pair of images, such as
        `functools.partial(lpips, params)`; needed if `lpips_weight` is not zero.
      lpips_weight: Weight of the perceptual distance; 0 leaves it out.
      ssim_weight: Weight of 1 - SSIM, the term `ssim_loss`; 0 leaves it out.
      features: Network whose features are compared, see `feature_distance`; needed if `features_weight` is not zero.
      features_weight: Weight of that distance, the term `features`; 0 leaves it out.
      logvar: Logarithm of the variance of the reconstruction; None is 0, and leaves it out of the terms.
      reduction: `mean` or `sum`; see the top of this file.
      values: Values of an image by which the divergence is divided, or a sum multiplied; None takes those of `images`.
        If the images were reduced, pass those of the whole ones, to which the divergence belongs.

    Returns:
      The loss; and its terms: `loss`, the distance under its own name, `kl`, and `lpips`, `ssim_loss`,
      `features` and `logvar` if they are used.

    Examples:
      >>> images, divergence = jnp.zeros((2, 8, 8, 3)), jnp.array(100.0)
      >>> loss, terms = reconstruction_loss(images + 0.5, images, divergence, distance="l1", kl_weight=1e-3)
      >>> {name: round(float(value), 3) for name, value in terms.items()}
      {'loss': 0.501, 'l1': 0.5, 'kl': 100.0}

    Raises:
      ValueError: If a name is unknown, or a perceptual distance or network is weighted and not given.

    Source: CompVis/latent-diffusion `contperceptual.py`.
    """
    if distance not in DISTANCES or reduction not in REDUCTIONS:
        raise ArgumentError(
            f"distance={distance!r} must be one of {', '.join(DISTANCES)}, and reduction={reduction!r} one of "
            f"{', '.join(REDUCTIONS)}"
        )
    values = images[0].size if values is None else values
    loss = DISTANCES[distance](reconstruction, images)
    terms = {distance: loss, "kl": divergence}
    if lpips_weight:
        if perceptual is None:
            raise ArgumentError(
                f"lpips_weight={lpips_weight} needs a perceptual distance; pass perceptual",
                field="lpips_weight",
                value=lpips_weight,
            )
        terms["lpips"] = jnp.mean(perceptual(reconstruction, images))
        loss = loss + lpips_weight * terms["lpips"]
    if ssim_weight:
        terms["ssim_loss"] = 1 - jnp.mean(structural_similarity(reconstruction, images))
        loss = loss + ssim_weight * terms["ssim_loss"]
    if features_weight:
        if features is None:
            raise ArgumentError(
                f"features_weight={features_weight} needs a network; pass features",
                field="features_weight",
                value=features_weight,
            )
        terms["features"] = jnp.mean(feature_distance(features, reconstruction, images))
        loss = loss + features_weight * terms["features"]
    if logvar is not None:
        terms["logvar"] = logvar
        loss = loss * jnp.exp(-logvar) + logvar
    loss = loss + kl_weight * divergence / values
    if reduction == "sum":
        loss = loss * values
    return loss, {"loss": loss, **terms}
