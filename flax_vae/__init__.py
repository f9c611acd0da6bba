"""The FLUX / Stable Diffusion family of image autoencoders in Flax.

The twin of `torch_ref`, class by class and name by name: torch `encoder.down.0.block.1.norm1.weight` is
`encoder/down_0/block_1/norm1/scale` here.  Images are `b h w c` in [-1, 1].

Each name is imported on first use, so `flax-vae --help` does not import JAX.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flax_vae.autoencoder import AutoEncoder, init_params
    from flax_vae.coders import Decoder, DownLevel, Encoder, MidBlock, UpLevel
    from flax_vae.convert import to_flax, to_torch
    from flax_vae.convert.architecture import PRESETS, AutoEncoderParams, DiscriminatorParams, TinyAutoEncoderParams
    from flax_vae.convert.latents import LatentDataset
    from flax_vae.discriminator import Discriminator
    from flax_vae.folders import decode_folder, encode_folder, encoding_of
    from flax_vae.gaussian import DiagonalGaussian, Posterior
    from flax_vae.inference import decode_in_bands, decode_over_devices, moments_over_devices
    from flax_vae.layers import AttnBlock, Downsample, ResnetBlock, Swish, Upsample, swish
    from flax_vae.loading import from_pretrained, save_pretrained
    from flax_vae.nnx import to_nnx
    from flax_vae.numerics import Numerics
    from flax_vae.ops import cache_compilations, compiler_options
    from flax_vae.tiny_autoencoder import TinyAutoEncoder
else:

    def __getattr__(name):
        from flax_vae.convert.faces import lazy_names  # not while this package is loaded

        return lazy_names(__name__)[0](name)

    def __dir__():
        from flax_vae.convert.faces import lazy_names

        return lazy_names(__name__)[1]()


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
    "LatentDataset",
    "MidBlock",
    "Numerics",
    "Posterior",
    "ResnetBlock",
    "Swish",
    "TinyAutoEncoder",
    "TinyAutoEncoderParams",
    "UpLevel",
    "Upsample",
    "cache_compilations",
    "compiler_options",
    "decode_folder",
    "decode_in_bands",
    "decode_over_devices",
    "encode_folder",
    "encoding_of",
    "from_pretrained",
    "init_params",
    "moments_over_devices",
    "save_pretrained",
    "swish",
    "to_flax",
    "to_nnx",
    "to_torch",
]
