"""Tiny autoencoders: TAESD and its relatives, which imitate the encoder and decoder of a published model.

Feature maps have one width and no normalisation, so that decoding takes a small part of the model's time.

Shapes: `b` batch, `h w` height and width, `c` channels, `z` channels of the raw latent, `f` factor.  Feature maps are
`b c h w` in PyTorch and `b h w c` in Flax.  Twins: `torch_ref.tiny_autoencoder` and `flax_vae.tiny_autoencoder`.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from flax_vae.convert.architecture import (
    POOL_GROUPS,
    POOL_WIDENING,
    TinyAutoEncoderParams,
    check_image,
    check_latent,
    check_no_sample,
    check_time,
)
from flax_vae.latents import channel_statistics
from flax_vae.numerics import Numerics, Remat
from flax_vae.ops import GroupNorm

POOL_EPS = 1e-5
LIMIT = 3  # of a latent's absolute values, which the decoder approaches smoothly


class TinyPool(nn.Module):
    """Two 1x1 convolutions around a normalisation, which brings statistics of the whole map to every position.

    Attributes:
      channels: Channels of input and output.
      numerics: How the block is computed.

    Source: madebyollin/taesd `taesd.py::Block.pool`, of TAEF2.
    """

    channels: int
    numerics: Numerics = Numerics()

    def setup(self):
        wide = POOL_WIDENING * self.channels
        self.conv_in = self.numerics.conv(wide, 1, use_bias=False)
        self.norm = GroupNorm(POOL_GROUPS, POOL_EPS, self.numerics.dtype, self.numerics.param_dtype)
        self.conv_out = self.numerics.conv(self.channels, 1, use_bias=False)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns a feature map of the shape of `x`."""
        return self.conv_out(nn.relu(self.norm(self.conv_in(x))))


class TinyBlock(nn.Module):
    """Three 3x3 convolutions with ReLU between them, added to their input, and ReLU.

    Attributes:
      channels: Channels of input and output.
      pooled: Whether `TinyPool` is added to the input first.
      numerics: How the block is computed.

    Source: madebyollin/taesd `taesd.py::Block`; diffusers `AutoencoderTinyBlock`.
    """

    channels: int
    pooled: bool = False
    numerics: Numerics = Numerics()

    def setup(self):
        self.conv1 = self.numerics.conv(self.channels, 3)
        self.conv2 = self.numerics.conv(self.channels, 3)
        self.conv3 = self.numerics.conv(self.channels, 3)
        if self.pooled:
            self.pool = TinyPool(self.channels, self.numerics)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns a feature map of the shape of `x`."""
        if self.pooled:
            x = x + self.pool(x)
        h = nn.relu(self.conv1(x))
        h = nn.relu(self.conv2(h))
        return nn.relu(self.conv3(h) + x)


class TinyDownLevel(nn.Module):
    """One resolution of the encoder: blocks, and a convolution of stride 2 to the next.

    Attributes:
      params: Architecture.
      level: Number of the level; level 0 has the size of the image.
      numerics: How the level is computed.
    """

    params: TinyAutoEncoderParams
    level: int
    numerics: Numerics = Numerics()

    def setup(self):
        params, level, numerics = self.params, self.level, self.numerics
        block, last = numerics.block(TinyBlock), params.num_levels - 1
        self.block = [block(params.ch, params.down_pools(level)) for _ in range(params.encoder_blocks[level])]
        self.downsample = numerics.conv(params.ch, 3, strides=2, use_bias=False) if level != last else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Returns the input of the next level."""
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyUpLevel(nn.Module):
    """One resolution of the decoder: blocks, nearest-neighbour upsampling to the next and a convolution.

    Attributes:
      params: Architecture.
      level: Number of the level; level 0 has the size of the image.
      numerics: How the level is computed.
    """

    params: TinyAutoEncoderParams
    level: int
    numerics: Numerics = Numerics()

    def setup(self):
        params, level, numerics = self.params, self.level, self.numerics
        block = numerics.block(TinyBlock)
        self.block = [block(params.up_ch, params.up_pools(level)) for _ in range(params.decoder_blocks[level])]
        self.upsample = numerics.conv(params.up_ch, 3, use_bias=False, upsample=True) if level != 0 else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Returns the input of the next finer level."""
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class TinyEncoder(nn.Module):
    """Computes the raw latent of images.

    Attributes:
      params: Architecture.
      numerics: How the encoder is computed.

    Source: madebyollin/taesd `taesd.py::Encoder`; diffusers `EncoderTiny`.
    """

    params: TinyAutoEncoderParams
    numerics: Numerics = Numerics()

    def setup(self):
        params, numerics = self.params, self.numerics
        self.conv_in = numerics.conv(params.ch, 3)
        self.down = [TinyDownLevel(params, level, numerics) for level in range(params.num_levels)]
        self.conv_out = numerics.conv(params.z_channels, 3)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W z"]:
        """Returns the raw latent of images in [-1, 1]."""
        x = self.conv_in((x + 1) / 2)  # the published weights take images in [0, 1]
        for level in self.down:
            x = level(x)
        return self.conv_out(x)


class TinyDecoder(nn.Module):
    """Computes images of raw latents.

    Attributes:
      params: Architecture.
      numerics: How the decoder is computed.

    Source: madebyollin/taesd `taesd.py::Decoder`; diffusers `DecoderTiny`.
    """

    params: TinyAutoEncoderParams
    numerics: Numerics = Numerics()

    def setup(self):
        params, numerics = self.params, self.numerics
        self.conv_in = numerics.conv(params.up_ch, 3)
        self.up = [TinyUpLevel(params, level, numerics) for level in range(params.num_levels)]
        self.conv_out = numerics.conv(params.out_ch, 3)

    def __call__(self, z: Float[Array, "b H W z"]) -> Float[Array, "b h w c"]:
        """Returns images, nominally in [-1, 1]."""
        x = nn.relu(self.conv_in(LIMIT * jnp.tanh(z / LIMIT)))
        for level in reversed(self.up):
            x = level(x)
        return 2 * self.conv_out(x) - 1


class TinyAutoEncoder(nn.Module):
    """Encodes images to latents of the model that it imitates, as the diffusion model sees them, and decodes them.

    Methods and arguments are those of `AutoEncoder`, so that one can take the place of the other.  The encoder gives
    the latent itself: there is no posterior, nothing to sample and no time.

    Shapes: images `b h w c` in [-1, 1]; raw latents `b H W z`; latents `b h/f w/f c` with `f = params.factor` and
    `c = params.latent_channels`, equal to raw latents unless patches are gathered (`params.patch`).

    Attributes:
      params: Architecture.
      dtype: Computation dtype; see `Numerics`.
      param_dtype: Dtype of the parameters that `init` creates.
      remat: Blocks whose activations the backward pass recomputes, `"blocks"` or none of them; see `Numerics`.

    Raises:
      ValueError: If a dtype or `remat` is unknown.

    Source: madebyollin/taesd `taesd.py::TAESD`; diffusers `AutoencoderTiny`.
    """

    params: TinyAutoEncoderParams
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    remat: Remat = "none"

    def __post_init__(self):
        Numerics(self.dtype, self.param_dtype, self.remat)  # an unknown value is an error here, not in the first call
        super().__post_init__()

    def setup(self):
        numerics = Numerics(self.dtype, self.param_dtype, self.remat)
        self.encoder = TinyEncoder(self.params, numerics)
        self.decoder = TinyDecoder(self.params, numerics)

    def encode(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b ..."] | None = None,
        *,
        sample: bool = False,
        noise: Float[Array, "b H W z"] | None = None,
    ) -> Float[Array, "b h/f w/f c"]:
        """Returns the latents of images.

        Args:
          x: Images in [-1, 1].
          time: None; see the class.
          sample: Whether to sample from the posterior, which must be False; see the class.
          noise: None; see the class.

        Raises:
          ValueError: If sizes or channels are wrong, or a time, noise or sampling is asked for.
        """
        check_no_sample(sample, noise)
        check_image(self.params, x, "b h w c")
        return self.scale(self.moments(x, time))

    def decode(
        self, z: Float[Array, "b h w c"], time: Float[Array, "b ..."] | None = None
    ) -> Float[Array, "b h*f w*f c"]:
        """Returns the images of latents, nominally in [-1, 1].

        Args:
          z: Latents.
          time: None; a tiny autoencoder takes no time.

        Raises:
          ValueError: If channels are wrong, or a time is given.
        """
        check_time(self.params, time, z.shape[0])
        return self.decoder(self.unscale(z))

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b ..."] | None = None,
        *,
        sample: bool = False,
        noise: Float[Array, "b H W z"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Returns the reconstructions of images; arguments as for `encode`.

        Args:
          x: Images in [-1, 1].
          time: None; a tiny autoencoder takes no time.
          sample: False; there is no posterior to sample from.
          noise: None; see `sample`.
        """
        return self.decode(self.encode(x, time, sample=sample, noise=noise), time)

    def scale(self, z: Float[Array, "b H W z"]) -> Float[Array, "b h w c"]:
        """Returns the latent of a raw one: its patches, gathered into channels.

        Models with statistics per channel return the patches of `(z - latent_mean) / latent_std`.

        Args:
          z: Raw latents.
        """
        if self.params.normalises_channels:
            mean, std = channel_statistics(self.params, z)
            z = (z - mean) / std
        p = self.params.patch
        return rearrange(z, "b (h pi) (w pj) c -> b h w (c pi pj)", pi=p, pj=p)

    def unscale(self, z: Float[Array, "b h w c"]) -> Float[Array, "b H W z"]:
        """Returns the raw latent of a latent; the inverse of `scale`.

        Args:
          z: Latents.

        Raises:
          ValueError: If channels are wrong.
        """
        check_latent(self.params.latent_channels, z, "b h w c")
        p = self.params.patch
        z = rearrange(z, "b h w (c pi pj) -> b (h pi) (w pj) c", pi=p, pj=p)
        if self.params.normalises_channels:
            mean, std = channel_statistics(self.params, z)
            z = z * std + mean
        return z

    def moments(self, x: Float[Array, "b h w c"], time: Float[Array, "b ..."] | None = None) -> Float[Array, "b H W z"]:
        """Returns the encoder's output, which is the raw latent; `AutoEncoder` has the moments of a posterior here.

        Args:
          x: Images in [-1, 1].
          time: None; a tiny autoencoder takes no time.

        Raises:
          ValueError: If a time is given.
        """
        check_time(self.params, time, x.shape[0])
        return self.encoder(x)
