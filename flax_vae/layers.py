"""The blocks: swish, normalisation, attention, residual block, down- and upsampling.

Shapes: `b` batch, `c` channels, `h w` height and width, `t` width of the time embedding.  Flax is `b h w c`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from flax_vae.attention import AttentionPath, attention
from flax_vae.convert.architecture import NORM_GROUPS, Padding, check_padding, check_time_emb
from flax_vae.ops import Conv, Dense, GroupNorm, add, convolve, upsample_and_convolve

NORM_EPS = 1e-6

PADDING = {"symmetric": ((1, 1), (1, 1)), "asymmetric": ((0, 1), (0, 1))}  # (before, after) of h and of w


def swish(x: Array) -> Array:
    """Returns `x * sigmoid(x)`, of the same shape as `x`.  Source: seed module 1."""
    return x * jax.nn.sigmoid(x)


class Swish(nn.Module):
    """`swish` as a module.  Source: seed module 1."""

    def __call__(self, x: Array) -> Array:
        """Returns `x * sigmoid(x)`."""
        return swish(x)


def group_norm(dtype: Dtype | None, param_dtype: Dtype) -> GroupNorm:
    """The family's normalisation: 32 groups, epsilon 1e-6, a learned scale and shift per channel."""
    return GroupNorm(NORM_GROUPS, NORM_EPS, dtype, param_dtype)


def conv(features: int, kernel: int, dtype: Dtype | None, param_dtype: Dtype) -> Conv:
    """A convolution of stride 1 that keeps height and width."""
    # "SAME" would agree here, and nowhere else in the family: padding is always said in numbers.
    side = (kernel // 2, kernel // 2)
    return _conv(features, kernel, 1, (side, side), dtype, param_dtype)


def _conv(
    features: int,
    kernel: int,
    strides: int,
    padding: tuple[tuple[int, int], tuple[int, int]],
    dtype: Dtype | None,
    param_dtype: Dtype,
    convolution: Callable[..., Array] = convolve,
) -> Conv:
    return Conv(
        features,
        (kernel, kernel),
        strides=strides,
        padding=padding,
        dtype=dtype,
        param_dtype=param_dtype,
        convolution=convolution,
    )


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of the map, added to its input.

    `x + proj_out(softmax(q kᵀ / sqrt(c)) v)` with q, k, v 1x1 convolutions of the normalised input.

    Attributes:
      in_channels: width of input and output.
      dtype: of the computation; None follows inputs and parameters.
      param_dtype: of the parameters.
      attention: how it is computed; see `flax_vae.attention`.

    Source: seed module 2; black-forest-labs/flux `modules/autoencoder.py::AttnBlock`.  Twin: `torch_ref.layers`.
    """

    in_channels: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    attention: AttentionPath = "auto"

    def setup(self):
        self.norm = group_norm(self.dtype, self.param_dtype)
        self.q = conv(self.in_channels, 1, self.dtype, self.param_dtype)
        self.k = conv(self.in_channels, 1, self.dtype, self.param_dtype)
        self.v = conv(self.in_channels, 1, self.dtype, self.param_dtype)
        self.proj_out = conv(self.in_channels, 1, self.dtype, self.param_dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the map with every position informed by all others."""
        height = x.shape[1]
        h = self.norm(x)
        q, k, v = (rearrange(project(h), "b h w c -> b (h w) c") for project in (self.q, self.k, self.v))
        h = attention(q, k, v, path=self.attention)
        h = rearrange(h, "b (h w) c -> b h w c", h=height)
        return x + self.proj_out(h)


class ResnetBlock(nn.Module):
    """Two normalised, activated 3x3 convolutions, added to their input.

    Attributes:
      in_channels: width of the input.
      out_channels: width of the output; where it differs, a 1x1 `nin_shortcut` carries the input over.
      time_emb_dim: width of the time embedding that is projected and added between the convolutions, or None.
      dtype: of the computation; None follows inputs and parameters.
      param_dtype: of the parameters.

    Source: seed module 3; black-forest-labs/flux `modules/autoencoder.py::ResnetBlock`.  Twin: `torch_ref.layers`.
    """

    in_channels: int
    out_channels: int
    time_emb_dim: int | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def setup(self):
        self.norm1 = group_norm(self.dtype, self.param_dtype)
        self.conv1 = conv(self.out_channels, 3, self.dtype, self.param_dtype)
        self.norm2 = group_norm(self.dtype, self.param_dtype)
        self.conv2 = conv(self.out_channels, 3, self.dtype, self.param_dtype)
        if self.in_channels != self.out_channels:
            self.nin_shortcut = conv(self.out_channels, 1, self.dtype, self.param_dtype)
        if self.time_emb_dim is not None:
            self.time_mlp = Dense(self.out_channels, dtype=self.dtype, param_dtype=self.param_dtype)

    def __call__(
        self, x: Float[Array, "b h w c"], time_emb: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h w d"]:
        """Returns the map, `out_channels` wide.

        Raises:
          ValueError: if `time_emb` is missing or superfluous.
        """
        check_time_emb(self.time_emb_dim, None if time_emb is None else time_emb.shape)
        h = self.conv1(self.norm1.then_swish(x))
        if time_emb is not None:
            h = add(h, rearrange(self.time_mlp(time_emb), "b c -> b 1 1 c"))
        h = self.conv2(self.norm2.then_swish(h))
        if self.in_channels != self.out_channels:
            x = self.nin_shortcut(x)
        return x + h


class Downsample(nn.Module):
    """Halves height and width with a 3x3 convolution of stride 2.

    `"symmetric"` pads one pixel on every side, as the seed does; `"asymmetric"` one row below and one column to the
    right, as FLUX and Stable Diffusion do.  For even h both give h / 2 but see different pixels; for odd h the first
    gives ceil(h / 2), the second floor(h / 2).

    Attributes:
      in_channels: width of input and output.
      padding: which of the two.
      dtype: of the computation; None follows inputs and parameters.
      param_dtype: of the parameters.

    Source: seed module 4; black-forest-labs/flux `modules/autoencoder.py::Downsample`.  Twin: `torch_ref.layers`.
    """

    in_channels: int
    padding: Padding = "symmetric"
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def setup(self):
        check_padding(self.padding)
        self.conv = _conv(self.in_channels, 3, 2, PADDING[self.padding], self.dtype, self.param_dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Returns the map at half the size."""
        return self.conv(x)


class Upsample(nn.Module):
    """Doubles height and width: every pixel becomes four, then a 3x3 convolution.

    Attributes:
      in_channels: width of input and output.
      dtype: of the computation; None follows inputs and parameters.
      param_dtype: of the parameters.

    Source: seed module 4.  Twin: `torch_ref.layers`.
    """

    in_channels: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def setup(self):
        side = PADDING["symmetric"]
        self.conv = _conv(self.in_channels, 3, 1, side, self.dtype, self.param_dtype, upsample_and_convolve)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
        """Returns the map at twice the size."""
        return self.conv(x)
