"""Losses of the autoencoder and the discriminator: reconstruction, KL, LPIPS, adversarial.

Imports `flax_vae.train.config`; used by the step.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.train.losses.adversarial import adaptive_weight, at_least_float32, choose, r1_penalty
    from flax_vae.train.losses.lpips_weights import load_lpips_weights, lpips_shapes
    from flax_vae.train.losses.perceptual import lpips, smallest_side, stages_of
    from flax_vae.train.losses.reconstruction import kl, reconstruction_loss
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "adaptive_weight",
    "choose",
    "kl",
    "load_lpips_weights",
    "lpips",
    "lpips_shapes",
    "r1_penalty",
    "reconstruction_loss",
    "smallest_side",
    "stages_of",
    "at_least_float32",
]
