"""The PyTorch reference: every block of the family, with the names and the arithmetic of the seed.

Gaps of the seed, and how they are closed here:

1. `swish` is called but only `Swish` is defined: both exist.
2. A model with `time_emb_dim` called without `time` failed with a TypeError deep inside: raises a ValueError.
3. `time` given to a model without `time_emb_dim` was ignored: raises a ValueError.
4. `learnable_logvar` and `sample` could not be set from the autoencoder: a field of `AutoEncoderParams`, and an
   argument of `encode`.
5. `logvar_scaling` is added to logvar, so it multiplies the variance: kept, and documented.
6. `encode` always sampled and gave no access to the distribution: `sample=`, `noise=`, `posterior()` with `kl()`.
7. Sizes were unchecked (32 groups; height and width multiples of the factor): checked, with a remedy in the message.
8. Attention at every level, symmetric padding and linear time were the only architecture: options, with these defaults.
9. The decoder's demo takes 8 x 8 latents where its configuration means 16 x 16: corrected in the docstring.
10. A logvar can have any value: `clamp_logvar` limits it, as LDM and diffusers do; off by default.
11. `Encoder` and `Decoder` took seven and eight loose arguments, some unused: they take `AutoEncoderParams`.
"""

from flax_vae.convert.architecture import PRESETS, AutoEncoderParams, DiscriminatorParams, TinyAutoEncoderParams
from flax_vae.convert.extras import needed

with needed("torch_ref is written in PyTorch", "torch", raises=ImportError):
    import torch  # noqa: F401 - imported here, so that its absence gives one clear error

from torch_ref.autoencoder import AutoEncoder
from torch_ref.coders import Decoder, DownLevel, Encoder, MidBlock, UpLevel
from torch_ref.discriminator import Discriminator
from torch_ref.gaussian import DiagonalGaussian, Posterior
from torch_ref.layers import AttnBlock, Downsample, ResnetBlock, Swish, Upsample, swish
from torch_ref.loading import from_pretrained, save_pretrained
from torch_ref.tiny_autoencoder import TinyAutoEncoder

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
    "TinyAutoEncoder",
    "TinyAutoEncoderParams",
    "UpLevel",
    "Upsample",
    "from_pretrained",
    "save_pretrained",
    "swish",
]
