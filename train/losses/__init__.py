"""Losses of the autoencoder and the discriminator as pure functions, for the training step here and for any other.

They take arrays and pytrees and return arrays, know no config and no global state, and work under `jit`, `pmap` and
`shard_map`:

* images: `reconstruction_loss` of `l1`, `mse` or `charbonnier`, `kl` and `lpips` with `load_lpips_weights`;
  `structural_similarity`; `feature_distance` in a network of your own;
* adversarial, of the logits of `flax_vae.Discriminator`: `hinge_d` and `hinge_g`, `non_saturating_d` and
  `non_saturating_g`, `adaptive_weight`, `r1_penalty`;
* latents: `transform_pair` (EQ), `add_noise`, `variance_expansion`.

Imports the errors of `flax_vae.convert`; used by the step.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.train.losses.adversarial import (
        adaptive_weight,
        at_least_float32,
        choose,
        hinge_d,
        hinge_g,
        non_saturating_d,
        non_saturating_g,
        r1_penalty,
    )
    from flax_vae.train.losses.features import Features, feature_distance
    from flax_vae.train.losses.latents import (
        QUARTERS,
        add_noise,
        transform_pair,
        variance_expansion,
    )
    from flax_vae.train.losses.lpips_weights import load_lpips_weights, lpips_shapes
    from flax_vae.train.losses.perceptual import lpips, smallest_side, stages_of
    from flax_vae.train.losses.reconstruction import charbonnier, kl, l1, mse, reconstruction_loss
    from flax_vae.train.losses.structure import WINDOW, structural_similarity
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Features",
    "QUARTERS",
    "WINDOW",
    "adaptive_weight",
    "add_noise",
    "at_least_float32",
    "charbonnier",
    "choose",
    "feature_distance",
    "hinge_d",
    "hinge_g",
    "kl",
    "l1",
    "load_lpips_weights",
    "lpips",
    "lpips_shapes",
    "mse",
    "non_saturating_d",
    "non_saturating_g",
    "r1_penalty",
    "reconstruction_loss",
    "smallest_side",
    "structural_similarity",
    "stages_of",
    "transform_pair",
    "variance_expansion",
]
