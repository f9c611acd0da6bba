"""Architectures of the autoencoder and the discriminator, presets, and argument checks.

Imports `flax_vae.convert.formats` for the names of dtypes; used by both models, Flax and PyTorch.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.convert.architecture.autoencoder import (
        LOGVAR_MAX,
        LOGVAR_MIN,
        NORM_GROUPS,
        AutoEncoderParams,
        Padding,
        PaddingMode,
        check_padding,
    )
    from flax_vae.convert.architecture.checks import (
        check_image,
        check_latent,
        check_noise,
        check_time,
        check_time_emb,
        check_weights,
    )
    from flax_vae.convert.architecture.discriminator import KERNEL, DiscriminatorParams
    from flax_vae.convert.architecture.presets import PRESETS, preset
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "AutoEncoderParams",
    "DiscriminatorParams",
    "KERNEL",
    "LOGVAR_MAX",
    "LOGVAR_MIN",
    "NORM_GROUPS",
    "PRESETS",
    "Padding",
    "PaddingMode",
    "check_image",
    "check_latent",
    "check_noise",
    "check_padding",
    "check_time",
    "check_time_emb",
    "check_weights",
    "preset",
]
