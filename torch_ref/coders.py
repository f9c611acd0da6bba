"""Encoder and decoder: levels of residual blocks around a middle block.

Each level is a class, where the seed builds anonymous modules; the names of the weights are equal.

Twins: `torch_ref.coders` and `flax_vae.coders`.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from flax_vae.convert.architecture import AutoEncoderParams, check_image, check_latent
from torch_ref.embedding import TimeEmb
from torch_ref.layers import AttnBlock, Downsample, ResnetBlock, Upsample, group_norm, norm_swish


class MidBlock(nn.Module):
    """Residual block, attention if the model has it there, residual block, all at the coarsest level.

    Attributes:
      params: Architecture.
      channels: Channels of input and output, the width of the coarsest level.

    Source: the `mid` of seed modules 5 and 6.
    """

    def __init__(self, params: AutoEncoderParams, channels: int):
        super().__init__()
        time, mode = params.time_emb_dim, params.padding_mode
        self.block_1 = ResnetBlock(channels, channels, time, mode)
        self.attn_1 = AttnBlock(channels) if params.mid_attention else None
        self.block_2 = ResnetBlock(channels, channels, time, mode)

    def forward(self, x: Float[Tensor, "b c h w"], time_emb: TimeEmb = None) -> Float[Tensor, "b c h w"]:
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

    Source: an element of `down` in seed module 5.
    """

    def __init__(self, params: AutoEncoderParams, level: int):
        super().__init__()
        width, last = params.widths[level], params.num_levels - 1
        widths = (params.widths[level - 1] if level else params.ch, *[width] * params.num_res_blocks)
        time, mode = params.time_emb_dim, params.padding_mode
        self.block = nn.ModuleList([ResnetBlock(i, o, time, mode) for i, o in pairwise(widths)])
        self.attn = nn.ModuleList([AttnBlock(width) for _ in self.block if params.attends(level)])
        self.downsample = Downsample(width, params.downsample_padding, mode) if level != last else None

    def forward(self, x: Float[Tensor, "b c h w"], time_emb: TimeEmb = None) -> Float[Tensor, "b d h2 w2"]:
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

    Source: an element of `up` in seed module 6.
    """

    def __init__(self, params: AutoEncoderParams, level: int):
        super().__init__()
        width, last = params.up_widths[level], params.num_levels - 1
        widths = (params.up_widths[min(level + 1, last)], *[width] * (params.num_res_blocks + 1))
        time, mode = params.time_emb_dim, params.padding_mode
        self.block = nn.ModuleList([ResnetBlock(i, o, time, mode) for i, o in pairwise(widths)])
        self.attn = nn.ModuleList([AttnBlock(width) for _ in self.block if params.attends(level)])
        self.upsample = Upsample(width, mode) if level != 0 else None

    def forward(self, x: Float[Tensor, "b c h w"], time_emb: TimeEmb = None) -> Float[Tensor, "b d h2 w2"]:
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

    Source: seed module 5; black-forest-labs/flux `modules/autoencoder.py::Encoder`.
    """

    def __init__(self, params: AutoEncoderParams):
        super().__init__()
        self.params = params
        last, mode = params.num_levels - 1, params.padding_mode
        self.conv_in = nn.Conv2d(params.in_channels, params.ch, kernel_size=3, padding=1, padding_mode=mode)
        self.down = nn.ModuleList([DownLevel(params, level) for level in range(params.num_levels)])
        self.mid = MidBlock(params, params.widths[last])
        self.norm_out = group_norm(params.widths[last])
        self.conv_out = nn.Conv2d(
            params.widths[last], 2 * params.z_channels, kernel_size=3, padding=1, padding_mode=mode
        )

    def forward(self, x: Float[Tensor, "b c h w"], time_emb: TimeEmb = None) -> Float[Tensor, "b 2*z h/f w/f"]:
        """Returns the moments of images in [-1, 1].

        Args:
          x: Images in [-1, 1].
          time_emb: Time embedding of each image, as `AutoEncoder.embed_time` returns it; None for a model without time.

        Examples:
          >>> encoder, time = Encoder(PRESETS["seed"]), np.zeros((1, 32), np.float32)
          >>> encoder(torch.zeros(1, 3, 64, 64), torch.from_numpy(time)).shape
          torch.Size([1, 64, 16, 16])

        Raises:
          ValueError: If h or w is not a multiple of the factor, the channels differ, or `time_emb` is missing or
            superfluous.
        """
        check_image(self.params, x, "b c h w", moments_only=True)
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

    Source: seed module 6; black-forest-labs/flux `modules/autoencoder.py::Decoder`.
    """

    def __init__(self, params: AutoEncoderParams):
        super().__init__()
        self.params = params
        last, mode = params.num_levels - 1, params.padding_mode
        self.conv_in = nn.Conv2d(params.z_channels, params.up_widths[last], kernel_size=3, padding=1, padding_mode=mode)
        self.mid = MidBlock(params, params.up_widths[last])
        self.up = nn.ModuleList([UpLevel(params, level) for level in range(params.num_levels)])
        self.norm_out = group_norm(params.up_widths[0])
        self.conv_out = nn.Conv2d(params.up_widths[0], params.out_ch, kernel_size=3, padding=1, padding_mode=mode)

    def forward(self, z: Float[Tensor, "b z h w"], time_emb: TimeEmb = None) -> Float[Tensor, "b c h*f w*f"]:
        """Returns the images of raw latents, nominally in [-1, 1].

        Args:
          z: Raw latents.
          time_emb: Time embedding of each image, as `AutoEncoder.embed_time` returns it; None for a model without time.

        Examples:
          >>> decoder, time = Decoder(PRESETS["seed"]), np.zeros((1, 32), np.float32)
          >>> decoder(torch.zeros(1, 32, 16, 16), torch.from_numpy(time)).shape
          torch.Size([1, 3, 64, 64])

        Raises:
          ValueError: If the latent's channels differ, it is too small, or `time_emb` is missing or superfluous.
        """
        check_latent(self.params.z_channels, z, "b c h w", least=self.params.least_side)
        # z to the coarsest level
        h = self.conv_in(z)
        # middle
        h = self.mid(h, time_emb)
        # upsampling
        for level in reversed(self.up):
            h = level(h, time_emb)
        # end
        return self.conv_out(norm_swish(self.norm_out, h))
