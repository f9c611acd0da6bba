"""Architectures of the autoencoder and the discriminator, presets, and argument checks.

Imports `flax_vae.convert.formats` for the names of dtypes; used by both models, Flax and PyTorch.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.convert.architecture.autoencoder import (
        LATER_FIELDS,
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
        check_no_sample,
        check_noise,
        check_time,
        check_time_emb,
        check_weights,
    )
    from flax_vae.convert.architecture.discriminator import KERNEL, DiscriminatorParams
    from flax_vae.convert.architecture.presets import ALL_PRESETS, PRESETS, TINY_PRESETS, preset
    from flax_vae.convert.architecture.tiny_autoencoder import (
        FAMILY,
        POOL_GROUPS,
        POOL_WIDENING,
        Architecture,
        TinyAutoEncoderParams,
        architecture_from_dict,
        require_posterior,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ALL_PRESETS",
    "Architecture",
    "AutoEncoderParams",
    "DiscriminatorParams",
    "FAMILY",
    "KERNEL",
    "LATER_FIELDS",
    "LOGVAR_MAX",
    "LOGVAR_MIN",
    "NORM_GROUPS",
    "POOL_GROUPS",
    "POOL_WIDENING",
    "PRESETS",
    "Padding",
    "PaddingMode",
    "TINY_PRESETS",
    "TinyAutoEncoderParams",
    "architecture_from_dict",
    "check_image",
    "check_latent",
    "check_no_sample",
    "check_noise",
    "check_padding",
    "check_time",
    "check_time_emb",
    "check_weights",
    "preset",
    "require_posterior",
]
