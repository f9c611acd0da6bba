"""What is minimised.

Shapes: images `b h w c` in [-1, 1].  Both terms are divided by the number of values in an image, so a sum of them is
LDM's loss (sums over the image, mean over the batch) on another scale, and its weights carry over.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_vae import Posterior
from train.config import LossConfig


def l1(reconstruction: Float[Array, "b h w c"], images: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Mean absolute difference per value, in the units of the image, whose range is 2."""
    return jnp.mean(jnp.abs(reconstruction - images))


def kl(posterior: Posterior) -> Float[Array, ""]:
    """Mean divergence from the standard normal, in nats per image."""
    return jnp.mean(posterior.kl())


def reconstruction_loss(
    reconstruction: Float[Array, "b h w c"], images: Float[Array, "b h w c"], posterior: Posterior, config: LossConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`l1 + kl_weight * kl / (h w c)`, and its terms by name: `loss`, `l1`, `kl`.

    Source: CompVis/latent-diffusion `contperceptual.py`, divided by `h w c`.
    """
    distance, divergence = l1(reconstruction, images), kl(posterior)
    loss = distance + config.kl_weight * divergence / images[0].size
    return loss, {"loss": loss, "l1": distance, "kl": divergence}
