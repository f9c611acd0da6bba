"""Building blocks: swish, normalisation, attention, residual block, down- and upsampling.

Shapes: `b` batch, `c` channels, `h w` height and width, `t` width of the time embedding.  Feature maps are `b c h w` in
PyTorch and `b h w c` in Flax.  Twins: `torch_ref.layers` and `flax_vae.layers`.
"""

import jax
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from flax_vae.attention import attention
from flax_vae.convert.architecture import NORM_GROUPS, Padding, PaddingMode, check_padding, check_time_emb
from flax_vae.embedding import TimeEmb
from flax_vae.numerics import Numerics
from flax_vae.ops import GroupNorm, add

NORM_EPS = 1e-6


def swish(x: Array) -> Array:
    """Returns `x * sigmoid(x)`, with the shape of `x`.  Source: seed module 1.

    Args:
      x: Array of any shape.
    """
    return x * jax.nn.sigmoid(x)


class Swish(nn.Module):
    """`swish` as a module.  Source: seed module 1."""

    def __call__(self, x: Array) -> Array:
        """Returns `x * sigmoid(x)`.

        Args:
          x: Array of any shape.
        """
        return swish(x)


def group_norm(numerics: Numerics) -> GroupNorm:
    """Returns the normalisation of all blocks: 32 groups, epsilon 1e-6, learned scale and shift per channel."""
    return GroupNorm(NORM_GROUPS, NORM_EPS, numerics.dtype, numerics.param_dtype)


def norm_swish(norm: GroupNorm, x: Array) -> Array:
    """Returns `swish(norm(x))`."""
    return norm.with_swish(x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the map, added to its input.

    `x + proj_out(softmax(q kᵀ / sqrt(c)) v)` with q, k, v 1x1 convolutions of the normalised input.

    Attributes:
      in_channels: Channels of input and output.
      numerics: How the block is computed.

    Source: seed module 2; black-forest-labs/flux `modules/autoencoder.py::AttnBlock`.
    """

    in_channels: int
    numerics: Numerics = Numerics()

    def setup(self):
        self.norm = group_norm(self.numerics)
        self.q, self.k, self.v, self.proj_out = (self.numerics.conv(self.in_channels, 1) for _ in range(4))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the feature map after attention over all positions.

        Args:
          x: Feature map.
        """
        h = self.norm(x)
        q, k, v = (rearrange(project(h), "b h w c -> b (h w) c") for project in (self.q, self.k, self.v))
        h = attention(q, k, v, path=self.numerics.attention)
        h = rearrange(h, "b (h w) c -> b h w c", h=x.shape[1])
        return x + self.proj_out(h)


class ResnetBlock(nn.Module):
    """Two normalised, activated 3x3 convolutions, added to their input.

    Attributes:
      in_channels: Channels of the input.
      out_channels: Channels of the output; if they differ, a 1x1 `nin_shortcut` projects the input.
      time_emb_dim: Width of the time embedding that is projected and added between the convolutions, or None.
      padding_mode: `"zeros"` or `"reflect"`, with what the convolutions pad.
      numerics: How the block is computed.

    Source: seed module 3; black-forest-labs/flux `modules/autoencoder.py::ResnetBlock`.
    """

    in_channels: int
    out_channels: int
    time_emb_dim: int | None = None
    padding_mode: PaddingMode = "zeros"
    numerics: Numerics = Numerics()

    def setup(self):
        self.norm1 = group_norm(self.numerics)
        self.conv1 = self.numerics.conv(self.out_channels, 3, padding_mode=self.padding_mode)
        self.norm2 = group_norm(self.numerics)
        self.conv2 = self.numerics.conv(self.out_channels, 3, padding_mode=self.padding_mode)
        if self.in_channels != self.out_channels:
            self.nin_shortcut = self.numerics.conv(self.out_channels, 1)
        if self.time_emb_dim is not None:
            self.time_mlp = self.numerics.dense(self.out_channels)

    def __call__(self, x: Float[Array, "b h w c"], time_emb: TimeEmb = None) -> Float[Array, "b h w d"]:
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
            h = add(h, self.time_mlp(time_emb)[:, None, None, :])
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
      numerics: How the block is computed.

    Source: seed module 4; black-forest-labs/flux `modules/autoencoder.py::Downsample`.
    """

    in_channels: int
    padding: Padding = "symmetric"
    padding_mode: PaddingMode = "zeros"
    numerics: Numerics = Numerics()

    def setup(self):
        check_padding(self.padding)
        mode = self.padding_mode if self.padding == "symmetric" else "zeros"
        self.conv = self.numerics.conv(self.in_channels, 3, strides=2, padding=self.padding, padding_mode=mode)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Returns the feature map at half the size.

        Args:
          x: Feature map.
        """
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles height and width by nearest-neighbour upsampling, followed by a 3x3 convolution.

    Attributes:
      in_channels: Channels of input and output.
      padding_mode: `"zeros"` or `"reflect"`, with what the convolution pads.
      numerics: How the block is computed.

    Source: seed module 4.
    """

    in_channels: int
    padding_mode: PaddingMode = "zeros"
    numerics: Numerics = Numerics()

    def setup(self):
        self.conv = self.numerics.conv(self.in_channels, 3, padding_mode=self.padding_mode, upsample=True)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        """Returns the feature map at twice the size.

        Args:
          x: Feature map.
        """
        return self.conv(x)
