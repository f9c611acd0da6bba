"""Encoder and decoder: levels of residual blocks around a middle block.

Each level is a class, where the seed builds anonymous modules; the names of the weights are equal.
"""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from flax_vae.convert.architecture import AutoEncoderParams, Padding, check_image, check_latent
from torch_ref.layers import AttnBlock, Downsample, ResnetBlock, Upsample, group_norm, swish


class MidBlock(nn.Module):
    """Residual block, attention, residual block, all at the coarsest level.

    Source: the `mid` of seed modules 5 and 6.  Twin: `flax_vae.coders`.
    """

    def __init__(self, channels: int, time_emb_dim: int | None):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, time_emb_dim)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels, time_emb_dim)

    def forward(
        self, x: Float[Tensor, "b c h w"], time_emb: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Returns a feature map of the shape of `x`."""
        x = self.block_1(x, time_emb)
        x = self.attn_1(x)
        return self.block_2(x, time_emb)


class DownLevel(nn.Module):
    """One resolution of the encoder: residual blocks, each followed by attention if `attend`, then downsampling.

    Source: an element of `down` in seed module 5.  Twin: `flax_vae.coders`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        time_emb_dim: int | None,
        attend: bool,
        downsampling: Padding | None,
    ):
        super().__init__()
        widths = (in_channels, *[out_channels] * num_blocks)
        self.block = nn.ModuleList([ResnetBlock(i, o, time_emb_dim) for i, o in pairwise(widths)])
        self.attn = nn.ModuleList([AttnBlock(out_channels) for _ in range(num_blocks if attend else 0)])
        if downsampling is not None:
            self.downsample = Downsample(out_channels, downsampling)

    def forward(
        self, x: Float[Tensor, "b c h w"], time_emb: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b d h2 w2"]:
        """Returns the input of the next level."""
        for index, block in enumerate(self.block):
            x = block(x, time_emb)
            if self.attn:
                x = self.attn[index](x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class UpLevel(nn.Module):
    """One resolution of the decoder: residual blocks, each followed by attention if `attend`, then upsampling.

    Source: an element of `up` in seed module 6.  Twin: `flax_vae.coders`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        time_emb_dim: int | None,
        attend: bool,
        upsampling: bool,
    ):
        super().__init__()
        widths = (in_channels, *[out_channels] * num_blocks)
        self.block = nn.ModuleList([ResnetBlock(i, o, time_emb_dim) for i, o in pairwise(widths)])
        self.attn = nn.ModuleList([AttnBlock(out_channels) for _ in range(num_blocks if attend else 0)])
        if upsampling:
            self.upsample = Upsample(out_channels)

    def forward(
        self, x: Float[Tensor, "b c h w"], time_emb: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b d h2 w2"]:
        """Returns the input of the next finer level."""
        for index, block in enumerate(self.block):
            x = block(x, time_emb)
            if self.attn:
                x = self.attn[index](x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Encoder(nn.Module):
    """Computes the moments of images: mean and logvar of the posterior, concatenated along the channels.

    Attributes:
      params: Architecture.

    Source: seed module 5; black-forest-labs/flux `modules/autoencoder.py::Encoder`.  Twin: `flax_vae.coders`.
    """

    def __init__(self, params: AutoEncoderParams):
        super().__init__()
        self.params = params
        last = params.num_levels - 1
        self.conv_in = nn.Conv2d(params.in_channels, params.ch, kernel_size=3, stride=1, padding=1)
        self.down = nn.ModuleList(
            [
                DownLevel(
                    in_channels=params.widths[level - 1] if level else params.ch,
                    out_channels=params.widths[level],
                    num_blocks=params.num_res_blocks,
                    time_emb_dim=params.time_emb_dim,
                    attend=params.attends(level),
                    downsampling=params.downsample_padding if level != last else None,
                )
                for level in range(params.num_levels)
            ]
        )
        self.mid = MidBlock(params.widths[last], params.time_emb_dim)
        self.norm_out = group_norm(params.widths[last])
        self.conv_out = nn.Conv2d(params.widths[last], 2 * params.z_channels, kernel_size=3, stride=1, padding=1)

    def forward(
        self, x: Float[Tensor, "b c h w"], time_emb: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b 2*z h/f w/f"]:
        """Returns the moments of images in [-1, 1].

        Example:
          >>> encoder = Encoder(PRESETS["seed"])
          >>> encoder(torch.randn(1, 3, 64, 64), torch.randn(1, 32)).shape
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
        return self.conv_out(swish(self.norm_out(h)))


class Decoder(nn.Module):
    """Computes images from raw latents.

    Attributes:
      params: Architecture.

    Source: seed module 6; black-forest-labs/flux `modules/autoencoder.py::Decoder`.  Twin: `flax_vae.coders`.
    """

    def __init__(self, params: AutoEncoderParams):
        super().__init__()
        self.params = params
        last = params.num_levels - 1
        self.conv_in = nn.Conv2d(params.z_channels, params.widths[last], kernel_size=3, stride=1, padding=1)
        self.mid = MidBlock(params.widths[last], params.time_emb_dim)
        self.up = nn.ModuleList(
            [
                UpLevel(
                    in_channels=params.widths[min(level + 1, last)],
                    out_channels=params.widths[level],
                    num_blocks=params.num_res_blocks + 1,
                    time_emb_dim=params.time_emb_dim,
                    attend=params.attends(level),
                    upsampling=level != 0,
                )
                for level in range(params.num_levels)
            ]
        )
        self.norm_out = group_norm(params.widths[0])
        self.conv_out = nn.Conv2d(params.widths[0], params.out_ch, kernel_size=3, stride=1, padding=1)

    def forward(
        self, z: Float[Tensor, "b z h w"], time_emb: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b c h*f w*f"]:
        """Returns the images of raw latents, nominally in [-1, 1].

        Example:
          >>> decoder = Decoder(PRESETS["seed"])
          >>> decoder(torch.randn(1, 32, 16, 16), torch.randn(1, 32)).shape
          torch.Size([1, 3, 64, 64])

        Raises:
          ValueError: If the latent's channels differ, or `time_emb` is missing or superfluous.
        """
        check_latent(self.params.z_channels, z, "b c h w")
        # z to the coarsest level
        h = self.conv_in(z)
        # middle
        h = self.mid(h, time_emb)
        # upsampling
        for level in reversed(self.up):
            h = level(h, time_emb)
        # end
        return self.conv_out(swish(self.norm_out(h)))
