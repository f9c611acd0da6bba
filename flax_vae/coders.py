"""Encoder and decoder: levels of residual blocks around a middle block.

The levels are classes of their own, where the seed fills anonymous modules; the names of the weights are the same.
"""

from functools import partial
from itertools import pairwise

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from flax_vae.attention import AttentionPath
from flax_vae.convert.architecture import AutoEncoderParams, Padding, check_image, check_latent
from flax_vae.layers import AttnBlock, Downsample, ResnetBlock, Upsample, conv, group_norm
from flax_vae.ops import Remat, rematerialised


class MidBlock(nn.Module):
    """Residual block, attention, residual block, all at the coarsest level.

    Source: the `mid` of seed modules 5 and 6.  Twin: `torch_ref.coders`.
    """

    channels: int
    time_emb_dim: int | None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    remat: Remat = "none"
    attention: AttentionPath = "auto"

    def setup(self):
        Resnet, Attn = rematerialised(self.remat, ResnetBlock, AttnBlock)
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.block_1 = Resnet(self.channels, self.channels, self.time_emb_dim, **kinds)
        self.attn_1 = Attn(self.channels, attention=self.attention, **kinds)
        self.block_2 = Resnet(self.channels, self.channels, self.time_emb_dim, **kinds)

    def __call__(
        self, x: Float[Array, "b h w c"], time_emb: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Returns a map of the same shape."""
        x = self.block_1(x, time_emb)
        x = self.attn_1(x)
        return self.block_2(x, time_emb)


class DownLevel(nn.Module):
    """One resolution of the encoder: residual blocks, attention after each where wanted, then half the size.

    Source: an element of `down` in seed module 5.  Twin: `torch_ref.coders`.
    """

    in_channels: int
    out_channels: int
    num_blocks: int
    time_emb_dim: int | None
    attend: bool
    downsampling: Padding | None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    remat: Remat = "none"
    attention: AttentionPath = "auto"

    def setup(self):
        Resnet, Attn = rematerialised(self.remat, ResnetBlock, AttnBlock)
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        widths = (self.in_channels, *[self.out_channels] * self.num_blocks)
        self.block = [Resnet(i, o, self.time_emb_dim, **kinds) for i, o in pairwise(widths)]
        attn = partial(Attn, self.out_channels, attention=self.attention, **kinds)
        self.attn = [attn() for _ in range(self.num_blocks if self.attend else 0)]
        if self.downsampling is not None:
            self.downsample = Downsample(self.out_channels, self.downsampling, **kinds)

    def __call__(
        self, x: Float[Array, "b h w c"], time_emb: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """Returns the next level's map."""
        for index, block in enumerate(self.block):
            x = block(x, time_emb)
            if self.attend:
                x = self.attn[index](x)
        return x if self.downsampling is None else self.downsample(x)


class UpLevel(nn.Module):
    """One resolution of the decoder: residual blocks, attention after each where wanted, then twice the size.

    Source: an element of `up` in seed module 6.  Twin: `torch_ref.coders`.
    """

    in_channels: int
    out_channels: int
    num_blocks: int
    time_emb_dim: int | None
    attend: bool
    upsampling: bool
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    remat: Remat = "none"
    attention: AttentionPath = "auto"

    def setup(self):
        Resnet, Attn = rematerialised(self.remat, ResnetBlock, AttnBlock)
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        widths = (self.in_channels, *[self.out_channels] * self.num_blocks)
        self.block = [Resnet(i, o, self.time_emb_dim, **kinds) for i, o in pairwise(widths)]
        attn = partial(Attn, self.out_channels, attention=self.attention, **kinds)
        self.attn = [attn() for _ in range(self.num_blocks if self.attend else 0)]
        if self.upsampling:
            self.upsample = Upsample(self.out_channels, **kinds)

    def __call__(
        self, x: Float[Array, "b h w c"], time_emb: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        """Returns the next finer level's map."""
        for index, block in enumerate(self.block):
            x = block(x, time_emb)
            if self.attend:
                x = self.attn[index](x)
        return self.upsample(x) if self.upsampling else x


class Encoder(nn.Module):
    """Image to moments: the mean and logvar of the posterior, one after the other along the channels.

    Attributes:
      params: the architecture.
      dtype: of the computation; None follows inputs and parameters.
      param_dtype: of the parameters.
      remat: what the backward pass computes again instead of keeping.
      attention: how it is computed; see `flax_vae.attention`.

    Source: seed module 5; black-forest-labs/flux `modules/autoencoder.py::Encoder`.  Twin: `torch_ref.coders`.
    """

    params: AutoEncoderParams
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    remat: Remat = "none"
    attention: AttentionPath = "auto"

    def setup(self):
        params = self.params
        last = params.num_levels - 1
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.conv_in = conv(params.ch, 3, **kinds)
        self.down = [
            DownLevel(
                in_channels=params.widths[level - 1] if level else params.ch,
                out_channels=params.widths[level],
                num_blocks=params.num_res_blocks,
                time_emb_dim=params.time_emb_dim,
                attend=params.attends(level),
                downsampling=params.downsample_padding if level != last else None,
                remat=self.remat,
                attention=self.attention,
                **kinds,
            )
            for level in range(params.num_levels)
        ]
        self.mid = MidBlock(
            params.widths[last], params.time_emb_dim, remat=self.remat, attention=self.attention, **kinds
        )
        self.norm_out = group_norm(**kinds)
        self.conv_out = conv(2 * params.z_channels, 3, **kinds)

    def __call__(
        self, x: Float[Array, "b h w c"], time_emb: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h/f w/f 2*z"]:
        """Returns the moments of images in [-1, 1].

        Example:
          >>> encoder, key = Encoder(PRESETS["seed"]), jax.random.key(0)
          >>> images, time_emb = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 32))
          >>> encoder.init_with_output(key, images, time_emb)[0].shape
          (1, 16, 16, 64)

        Raises:
          ValueError: if h or w is no multiple of the factor, the channels differ, or `time_emb` is missing or
            superfluous.
        """
        check_image(self.params, x, "b h w c", moments_only=True)
        # downsampling
        h = self.conv_in(x)
        for level in self.down:
            h = level(h, time_emb)
        # middle
        h = self.mid(h, time_emb)
        # end
        return self.conv_out(self.norm_out.then_swish(h))


class Decoder(nn.Module):
    """Raw latent to image.

    Attributes:
      params: the architecture.
      dtype: of the computation; None follows inputs and parameters.
      param_dtype: of the parameters.
      remat: what the backward pass computes again instead of keeping.
      attention: how it is computed; see `flax_vae.attention`.

    Source: seed module 6; black-forest-labs/flux `modules/autoencoder.py::Decoder`.  Twin: `torch_ref.coders`.
    """

    params: AutoEncoderParams
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    remat: Remat = "none"
    attention: AttentionPath = "auto"

    def setup(self):
        params = self.params
        last = params.num_levels - 1
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.conv_in = conv(params.widths[last], 3, **kinds)
        self.mid = MidBlock(
            params.widths[last], params.time_emb_dim, remat=self.remat, attention=self.attention, **kinds
        )
        self.up = [
            UpLevel(
                in_channels=params.widths[min(level + 1, last)],
                out_channels=params.widths[level],
                num_blocks=params.num_res_blocks + 1,
                time_emb_dim=params.time_emb_dim,
                attend=params.attends(level),
                upsampling=level != 0,
                remat=self.remat,
                attention=self.attention,
                **kinds,
            )
            for level in range(params.num_levels)
        ]
        self.norm_out = group_norm(**kinds)
        self.conv_out = conv(params.out_ch, 3, **kinds)

    def __call__(
        self, z: Float[Array, "b h w z"], time_emb: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h*f w*f c"]:
        """Returns images, nominally in [-1, 1], of raw latents.

        Example:
          >>> decoder, key = Decoder(PRESETS["seed"]), jax.random.key(0)
          >>> latents, time_emb = jnp.zeros((1, 16, 16, 32)), jnp.zeros((1, 32))
          >>> decoder.init_with_output(key, latents, time_emb)[0].shape
          (1, 64, 64, 3)

        Raises:
          ValueError: if the latent's channels differ, or `time_emb` is missing or superfluous.
        """
        check_latent(self.params.z_channels, z, "b h w c")
        # z to the coarsest level
        h = self.conv_in(z)
        # middle
        h = self.mid(h, time_emb)
        # upsampling
        for level in reversed(self.up):
            h = level(h, time_emb)
        # end
        return self.conv_out(self.norm_out.then_swish(h))
