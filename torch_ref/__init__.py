"""The PyTorch reference: every block of the family, with the seed's names for the weights and the seed's arithmetic.

What the seed leaves open, and what is done here:

1. `swish` is called but only `Swish` is defined: both exist.
2. A model with `time_emb_dim` called without `time` died of a TypeError deep inside: a ValueError says so.
3. `time` given to a model without `time_emb_dim` was ignored: a ValueError.
4. `learnable_logvar` and `sample` could not be reached from the autoencoder: a field of `AutoEncoderParams`, and an
   argument of `encode`.
5. `logvar_scaling` is added to logvar, so it multiplies the variance: the same arithmetic, said in the docstring.
6. `encode` always sampled and gave no access to the distribution: `sample=`, `noise=`, `posterior()` with `kl()`.
7. Sizes were unchecked (32 groups; height and width multiples of the factor): checked, with the remedy in the message.
8. Attention at every level, symmetric padding and linear time were the only architecture: switches, whose defaults
   they are.
9. The decoder's demo feeds 8 x 8 latents where its configuration means 16 x 16: corrected in the docstring.
10. A logvar may have any value: `clamp_logvar` limits it, as LDM and diffusers do; off by default.
11. `Encoder` and `Decoder` took seven and eight loose arguments, some unused: they take the architecture record.
"""

from flax_vae.convert.architecture import PRESETS, AutoEncoderParams, DiscriminatorParams
from flax_vae.convert.extras import needed

with needed("torch_ref is written in PyTorch", "torch", raises=ImportError):
    import torch  # noqa: F401 - here, so that its absence is one sentence

from torch_ref.autoencoder import AutoEncoder
from torch_ref.coders import Decoder, DownLevel, Encoder, MidBlock, UpLevel
from torch_ref.discriminator import Discriminator
from torch_ref.gaussian import DiagonalGaussian, Posterior
from torch_ref.layers import AttnBlock, Downsample, ResnetBlock, Swish, Upsample, swish
from torch_ref.loading import from_pretrained, save_pretrained

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
    "from_pretrained",
    "save_pretrained",
    "swish",
]
