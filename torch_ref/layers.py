"""Building blocks: swish, normalisation, attention, residual block, down- and upsampling.

Shapes: `b` batch, `c` channels, `h w` height and width, `t` width of the time embedding.  Feature maps are `b c h w` in
PyTorch and `b h w c` in Flax.  Twins: `torch_ref.layers` and `flax_vae.layers`.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from flax_vae.convert.architecture import NORM_GROUPS, Padding, PaddingMode, check_padding, check_time_emb
from torch_ref.attention import attention
from torch_ref.embedding import TimeEmb

NORM_EPS = 1e-6


def swish(x: Tensor) -> Tensor:
    """Returns `x * sigmoid(x)`, with the shape of `x`.  Source: seed module 1.

    Args:
      x: Array of any shape.
    """
    return x * torch.sigmoid(x)


class Swish(nn.Module):
    """`swish` as a module.  Source: seed module 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x * sigmoid(x)`.

        Args:
          x: Array of any shape.
        """
        return swish(x)


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns the normalisation of all blocks: 32 groups, epsilon 1e-6, learned scale and shift per channel."""
    return nn.GroupNorm(num_groups=NORM_GROUPS, num_channels=channels, eps=NORM_EPS, affine=True)


def norm_swish(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Returns `swish(norm(x))`."""
    return swish(norm(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the map, added to its input.

    `x + proj_out(softmax(q kᵀ / sqrt(c)) v)` with q, k, v 1x1 convolutions of the normalised input.

    Attributes:
      in_channels: Channels of input and output.

    Source: seed module 2; black-forest-labs/flux `modules/autoencoder.py::AttnBlock`.
    """

    def __init__(self, in_channels: int):
        super().__init__()
        self.in_channels = in_channels
        self.norm = group_norm(in_channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(in_channels, in_channels, kernel_size=1) for _ in range(4))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Returns the feature map after attention over all positions.

        Args:
          x: Feature map.
        """
        h = self.norm(x)
        q, k, v = (rearrange(project(h), "b c h w -> b (h w) c") for project in (self.q, self.k, self.v))
        h = attention(q, k, v)
        h = rearrange(h, "b (h w) c -> b c h w", h=x.shape[2])
        return x + self.proj_out(h)


class ResnetBlock(nn.Module):
    """Two normalised, activated 3x3 convolutions, added to their input.

    Attributes:
      in_channels: Channels of the input.
      out_channels: Channels of the output; if they differ, a 1x1 `nin_shortcut` projects the input.
      time_emb_dim: Width of the time embedding that is projected and added between the convolutions, or None.
      padding_mode: `"zeros"` or `"reflect"`, with what the convolutions pad.

    Source: seed module 3; black-forest-labs/flux `modules/autoencoder.py::ResnetBlock`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, time_emb_dim: int | None = None, padding_mode: PaddingMode = "zeros"
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.time_emb_dim = time_emb_dim
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, padding_mode=padding_mode)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, padding_mode=padding_mode)
        if self.in_channels != self.out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=1, padding=0)
        # The seed's order: torch.optim stores its state by the number of each parameter, not by its name.
        if self.time_emb_dim is not None:
            self.time_mlp = nn.Linear(self.time_emb_dim, out_channels)

    def forward(self, x: Float[Tensor, "b c h w"], time_emb: TimeEmb = None) -> Float[Tensor, "b d h w"]:
        """Returns a feature map with `out_channels` channels.

        Args:
          x: Feature map.
          time_emb: Time embedding of each image, as `AutoEncoder.embed_time` returns it; None for a model without time.

        Raises:
          ValueError: If `time_emb` is missing or superfluous.
        """
        check_time_emb(self.time_emb_dim, None if time_emb is None else tuple(time_emb.shape))
        h = self.conv1(norm_swish(self.norm1, x))
        if time_emb is not None:
            h = h + self.time_mlp(time_emb)[:, :, None, None]
        h = self.conv2(norm_swish(self.norm2, h))
        if self.in_channels != self.out_channels:
            x = self.nin_shortcut(x)
        return x + h


class Downsample(nn.Module):
    """Halves height and width with a 3x3 convolution of stride 2.

    `"symmetric"` pads one pixel on every side, as in the seed; `"asymmetric"` one row below and one column to the
    right, as in FLUX and Stable Diffusion.  For even h both give h / 2, from different pixels; for odd h the first
    gives ceil(h / 2), the second floor(h / 2).

    Attributes:
      in_channels: Channels of input and output.
      padding: `"symmetric"` or `"asymmetric"`.
      padding_mode: `"zeros"` or `"reflect"`, with what symmetric padding pads; asymmetric padding is always of zeros.

    Source: seed module 4; black-forest-labs/flux `modules/autoencoder.py::Downsample`.
    """

    def __init__(self, in_channels: int, padding: Padding = "symmetric", padding_mode: PaddingMode = "zeros"):
        super().__init__()
        self.padding = padding
        check_padding(self.padding)
        self.conv = nn.Conv2d(in_channels, in_channels, 3, 2, int(padding == "symmetric"), padding_mode=padding_mode)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Returns the feature map at half the size.

        Args:
          x: Feature map.
        """
        if self.padding == "asymmetric":
            x = nn.functional.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles height and width by nearest-neighbour upsampling, followed by a 3x3 convolution.

    Attributes:
      in_channels: Channels of input and output.
      padding_mode: `"zeros"` or `"reflect"`, with what the convolution pads.

    Source: seed module 4.
    """

    def __init__(self, in_channels: int, padding_mode: PaddingMode = "zeros"):
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.conv = nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1, padding_mode=padding_mode)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        """Returns the feature map at twice the size.

        Args:
          x: Feature map.
        """
        return self.conv(self.upsample(x))
