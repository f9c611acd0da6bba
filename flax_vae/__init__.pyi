"""What `flax_vae` offers, for type checkers, and for `__init__.py`, which loads each name when it is asked for."""

from convert.architecture import PRESETS, AutoEncoderParams, DiscriminatorParams
from flax_vae.autoencoder import AutoEncoder, init_params
from flax_vae.coders import Decoder, DownLevel, Encoder, MidBlock, UpLevel
from flax_vae.discriminator import Discriminator
from flax_vae.gaussian import DiagonalGaussian, Posterior
from flax_vae.inference import decode_in_bands, decode_over_devices, moments_over_devices
from flax_vae.layers import AttnBlock, Downsample, ResnetBlock, Swish, Upsample, swish
from flax_vae.loading import from_pretrained, save_pretrained
from flax_vae.nnx import to_nnx
from flax_vae.ops import cache_compilations, compiler_options

__version__: str

__all__ = [
    "PRESETS",
    "AttnBlock",
    "AutoEncoder",
    "AutoEncoderParams",
    "Decoder",
    "DiagonalGaussian",
    "Discriminator",
    "DiscriminatorParams",
    "DownLevel",
    "Downsample",
    "Encoder",
    "MidBlock",
    "Posterior",
    "ResnetBlock",
    "Swish",
    "UpLevel",
    "Upsample",
    "cache_compilations",
    "compiler_options",
    "decode_in_bands",
    "decode_over_devices",
    "from_pretrained",
    "init_params",
    "moments_over_devices",
    "save_pretrained",
    "swish",
    "to_nnx",
]
