"""The interface of diffusers' former `FlaxAutoencoderKL` on the models of this package.

Parameter names, axes, arguments and results are those of diffusers up to 0.39.  Imports the models and
`flax_vae.convert`; used by projects that were written for that class.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.compat.autoencoder import FlaxAutoencoderKL
    from flax_vae.compat.coders import FlaxDecoder, FlaxEncoder
    from flax_vae.compat.outputs import (
        FlaxAutoencoderKLOutput,
        FlaxDecoderOutput,
        FlaxDiagonalGaussianDistribution,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "FlaxAutoencoderKL",
    "FlaxAutoencoderKLOutput",
    "FlaxDecoder",
    "FlaxDecoderOutput",
    "FlaxDiagonalGaussianDistribution",
    "FlaxEncoder",
]
