"""Encoder and decoder: levels of residual blocks around a middle block.

Each level is a class, where the seed builds anonymous modules; the names of the weights are equal.

Twins: `torch_ref.coders` and `flax_vae.coders`.
"""

from itertools import pairwise

from flax import linen as nn
from jaxtyping import Array, Float

from flax_vae.convert.architecture import AutoEncoderParams, check_image, check_latent
from flax_vae.embedding import TimeEmb
from flax_vae.layers import AttnBlock, Downsample, ResnetBlock, Upsample, group_norm, norm_swish
from flax_vae.numerics import Numerics


class MidBlock(nn.Module):
    """Residual block, attention if the model has it there, residual block, all at the coarsest level.

    Attributes:
      params: Architecture.
      channels: Channels of input and output, the width of the coarsest level.
      numerics: How the block is computed.

    Source: the `mid` of seed modules 5 and 6.
    """

    params: AutoEncoderParams
    channels: int
    numerics: Numerics = Numerics()

    def setup(self):
        params, channels = self.params, self.channels
        resnet, attn = self.numerics.blocks(ResnetBlock, AttnBlock)
        time, mode = params.time_emb_dim, params.padding_mode
        self.block_1 = resnet(channels, channels, time, mode)
        self.attn_1 = attn(channels) if params.mid_attention else None
        self.block_2 = resnet(channels, channels, time, mode)

    def __call__(self, x: Float[Array, "b h w c"], time_emb: TimeEmb = None) -> Float[Array, "b h w c"]:
        """Returns a feature map of the shape of `x`.

        Args:
          x: Feature map.
          time_emb: Time embedding of each image, as `AutoEncoder.embed_time` returns it; None for a model without time.
        """
        x = self.block_1(x, time_emb)
        if self.attn_1 is not None:
            x = self.attn_1(x)
        return self.block_2(x, time_emb)


class DownLevel(nn.Module):
    """One resolution of the encoder: residual blocks, each followed by attention if the level attends; downsampling.

    Attributes:
      params: Architecture.
      level: Number of the level; level 0 has the size of the image.
      numerics: How the level is computed.

    Source: an element of `down` in seed module 5.
    """

    params: AutoEncoderParams
    level: int
    numerics: Numerics = Numerics()

    def setup(self):
        params, level, numerics = self.params, self.level, self.numerics
        resnet, attn = numerics.blocks(ResnetBlock, AttnBlock)
        width, last = params.widths[level], params.num_levels - 1
        widths = (params.widths[level - 1] if level else params.ch, *[width] * params.num_res_blocks)
        time, mode = params.time_emb_dim, params.padding_mode
        self.block = [resnet(i, o, time, mode) for i, o in pairwise(widths)]
        self.attn = [attn(width) for _ in self.block if params.attends(level)]
        self.downsample = Downsample(width, params.downsample_padding, mode, numerics) if level != last else None

    def __call__(self, x: Float[Array, "b h w c"], time_emb: TimeEmb = None) -> Float[Array, "b h2 w2 d"]:
        """Returns the input of the next level.

        Args:
          x: Feature map.
          time_emb: Time embedding of each image, as `AutoEncoder.embed_time` returns it; None for a model without time.
        """
        for index, block in enumerate(self.block):
            x = block(x, time_emb)
            if self.attn:
                x = self.attn[index](x)
        return x if self.downsample is None else self.downsample(x)


class UpLevel(nn.Module):
    """One resolution of the decoder: residual blocks, each followed by attention if the level attends; upsampling.

    Attributes:
      params: Architecture.
      level: Number of the level; level 0 has the size of the image.
      numerics: How the level is computed.

    Source: an element of `up` in seed module 6.
    """

    params: AutoEncoderParams
    level: int
    numerics: Numerics = Numerics()

    def setup(self):
        params, level, numerics = self.params, self.level, self.numerics
        resnet, attn = numerics.blocks(ResnetBlock, AttnBlock)
        width, last = params.up_widths[level], params.num_levels - 1
        widths = (params.up_widths[min(level + 1, last)], *[width] * (params.num_res_blocks + 1))
        time, mode = params.time_emb_dim, params.padding_mode
        self.block = [resnet(i, o, time, mode) for i, o in pairwise(widths)]
        self.attn = [attn(width) for _ in self.block if params.attends(level)]
        self.upsample = Upsample(width, mode, numerics) if level != 0 else None

    def __call__(self, x: Float[Array, "b h w c"], time_emb: TimeEmb = None) -> Float[Array, "b h2 w2 d"]:
        """Returns the input of the next finer level.

        Args:
          x: Feature map.
          time_emb: Time embedding of each image, as `AutoEncoder.embed_time` returns it; None for a model without time.
        """
        for index, block in enumerate(self.block):
            x = block(x, time_emb)
            if self.attn:
                x = self.attn[index](x)
        return x if self.upsample is None else self.upsample(x)


class Encoder(nn.Module):
    """Computes the moments of images: mean and logvar of the posterior, concatenated along the channels.

    Attributes:
      params: Architecture.
      numerics: How the encoder is computed.

    Source: seed module 5; black-forest-labs/flux `modules/autoencoder.py::Encoder`.
    """

    params: AutoEncoderParams
    numerics: Numerics = Numerics()

    def setup(self):
        params, numerics = self.params, self.numerics
        last, mode = params.num_levels - 1, params.padding_mode
        self.conv_in = numerics.conv(params.ch, 3, padding_mode=mode)
        self.down = [DownLevel(params, level, numerics) for level in range(params.num_levels)]
        self.mid = MidBlock(params, params.widths[last], numerics)
        self.norm_out = group_norm(numerics)
        self.conv_out = numerics.conv(2 * params.z_channels, 3, padding_mode=mode)

    def __call__(self, x: Float[Array, "b h w c"], time_emb: TimeEmb = None) -> Float[Array, "b h/f w/f 2*z"]:
        """Returns the moments of images in [-1, 1].

        Args:
          x: Images in [-1, 1].
          time_emb: Time embedding of each image, as `AutoEncoder.embed_time` returns it; None for a model without time.

        Examples:
          >>> encoder, time = Encoder(PRESETS["seed"]), np.zeros((1, 32), np.float32)
          >>> jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 64, 3)), time)[0].shape
          (1, 16, 16, 64)

        Raises:
          ValueError: If h or w is not a multiple of the factor, the channels differ, or `time_emb` is missing or
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
        return self.conv_out(norm_swish(self.norm_out, h))


class Decoder(nn.Module):
    """Computes images from raw latents.

    Attributes:
      params: Architecture.
      numerics: How the decoder is computed.

    Source: seed module 6; black-forest-labs/flux `modules/autoencoder.py::Decoder`.
    """

    params: AutoEncoderParams
    numerics: Numerics = Numerics()

    def setup(self):
        params, numerics = self.params, self.numerics
        last, mode = params.num_levels - 1, params.padding_mode
        self.conv_in = numerics.conv(params.up_widths[last], 3, padding_mode=mode)
        self.mid = MidBlock(params, params.up_widths[last], numerics)
        self.up = [UpLevel(params, level, numerics) for level in range(params.num_levels)]
        self.norm_out = group_norm(numerics)
        self.conv_out = numerics.conv(params.out_ch, 3, padding_mode=mode)

    def __call__(self, z: Float[Array, "b h w z"], time_emb: TimeEmb = None) -> Float[Array, "b h*f w*f c"]:
        """Returns the images of raw latents, nominally in [-1, 1].

        Args:
          z: Raw latents.
          time_emb: Time embedding of each image, as `AutoEncoder.embed_time` returns it; None for a model without time.

        Examples:
          >>> decoder, time = Decoder(PRESETS["seed"]), np.zeros((1, 32), np.float32)
          >>> jax.eval_shape(decoder.init_with_output, jax.random.key(0), jnp.zeros((1, 16, 16, 32)), time)[0].shape
          (1, 64, 64, 3)

        Raises:
          ValueError: If the latent's channels differ, it is too small, or `time_emb` is missing or superfluous.
        """
        check_latent(self.params.z_channels, z, "b h w c", least=self.params.least_side)
        # z to the coarsest level
        h = self.conv_in(z)
        # middle
        h = self.mid(h, time_emb)
        # upsampling
        for level in reversed(self.up):
            h = level(h, time_emb)
        # end
        return self.conv_out(norm_swish(self.norm_out, h))
