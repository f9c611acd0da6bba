"""Operations of the decoder on a band of rows, for large images that are decoded band by band.

A band includes the rows above and below that its convolutions reach.  Each convolution consumes some of them, so that
the result equals that of the whole map.  A band stores its position in the map, because convolutions pad with zeros at
the edges of the map.

Shapes: `n` rows of a band, `h w` height and width of a map, `c` channels, `t` width of the time embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct
from flax.typing import Dtype
from jaxtyping import Array, Float

from flax_vae.attention import attention
from flax_vae.convert.architecture import PaddingMode
from flax_vae.layers import NORM_EPS, swish
from flax_vae.ops import Conv as Convolution
from flax_vae.ops import Dense, convolve, upsample_padded

BandWeights = dict[str, Any]


@dataclass(frozen=True)
class Band:
    """Consecutive rows of a map of `height` rows; the first is row `start`, and some may lie outside the map."""

    x: Float[Array, "1 n w c"]
    start: Array
    height: int

    def crop(self, rows: int) -> "Band":
        """Returns the band without its first and last `rows` rows."""
        return Band(self.x[:, rows : self.x.shape[1] - rows], self.start + rows, self.height)

    def padded(self, mode: Literal["zeros", "reflect", "edge"]) -> Float[Array, "1 n w c"]:
        """Returns the rows, and outside the map what a convolution of the whole map pads with.

        Only the row next to the map is right for `"reflect"` and `"edge"`; convolutions read no other.
        """
        row, last = self.start + jnp.arange(self.x.shape[1]), self.height - 1
        if mode == "zeros":
            return jnp.where(((row >= 0) & (row <= last))[None, :, None, None], self.x, 0)
        step = 1 if mode == "reflect" else 0  # from the row at the edge to the one that is repeated
        row = jnp.where(row < 0, step, jnp.where(row > last, last - step, row)) - self.start
        return jnp.take(self.x, jnp.clip(row, 0, self.x.shape[1] - 1), axis=1)


class BandOp(Protocol):
    """An operation of the decoder; its weights are leaves of a pytree, so that blocks of one shape share a program."""

    def reach(self, rows: int) -> int:
        """Returns the number of input rows needed on either side of a band for `rows` correct output rows there."""
        ...

    def __call__(self, band: Band) -> Band:
        """Returns the output band."""
        ...


@struct.dataclass
class BandConv:
    """Convolution of stride 1; a 3x3 kernel consumes a row on either side of the band."""

    weights: BandWeights
    dtype: Dtype | None = struct.field(pytree_node=False)
    padding_mode: PaddingMode = struct.field(pytree_node=False, default="zeros")

    def reach(self, rows: int) -> int:
        return rows + self.weights["kernel"].shape[0] // 2

    def __call__(self, band: Band) -> Band:
        side = self.weights["kernel"].shape[0] // 2
        x = band.padded(self.padding_mode) if side else band.x
        x = _convolve(x, self.weights, (side, side), self.dtype, partial(convolve, padding_mode=self.padding_mode))
        return Band(x, band.start + side, band.height)


@struct.dataclass
class BandNorm:
    """Group normalisation with given means and variances of the channels, optionally followed by swish."""

    weights: BandWeights
    mean: Float[Array, " c"]
    variance: Float[Array, " c"]
    dtype: Dtype | None = struct.field(pytree_node=False)
    activate: bool = struct.field(pytree_node=False, default=True)

    def reach(self, rows: int) -> int:
        return rows

    def __call__(self, band: Band) -> Band:
        scale, bias = self.weights["scale"], self.weights["bias"]
        factor = jax.lax.rsqrt(self.variance + NORM_EPS) * scale
        x = (band.x - _per_channel(self.mean)) * _per_channel(factor) + _per_channel(bias)
        x = x.astype(jnp.result_type(band.x, scale, bias) if self.dtype is None else self.dtype)
        return Band(swish(x) if self.activate else x, band.start, band.height)


@struct.dataclass
class AddTime:
    """Addition of the projected time embedding to every position."""

    weights: BandWeights
    time_emb: Float[Array, " t"]
    dtype: Dtype | None = struct.field(pytree_node=False)

    def reach(self, rows: int) -> int:
        return rows

    def __call__(self, band: Band) -> Band:
        shift = Dense(band.x.shape[-1], dtype=self.dtype).apply({"params": self.weights}, self.time_emb)
        return Band(band.x + _per_channel(jnp.asarray(shift)), band.start, band.height)


@struct.dataclass
class BandAttention:
    """Attention of the band's positions to all positions of the map."""

    query: BandConv
    k: Float[Array, "1 h*w c"]
    v: Float[Array, "1 h*w c"]

    def reach(self, rows: int) -> int:
        return rows

    def __call__(self, band: Band) -> Band:
        q = self.query(band).x
        x = attention(rearrange(q, "b n w c -> b (n w) c"), self.k, self.v)
        return Band(x.reshape(q.shape), band.start, band.height)


@struct.dataclass
class BandUpsample:
    """Nearest-neighbour upsampling and a 3x3 convolution, without the enlarged map; see `flax_vae.ops.upsampling`."""

    weights: BandWeights
    dtype: Dtype | None = struct.field(pytree_node=False)
    padding_mode: PaddingMode = struct.field(pytree_node=False, default="zeros")

    def followed_by(self, pointwise: BandWeights) -> "BandUpsample":
        """Returns this followed by a 1x1 convolution, as one operation."""
        by = partial(jnp.einsum, precision="highest")
        kernel = by("hwim,mo->hwio", self.weights["kernel"], pointwise["kernel"][0, 0])
        bias = by("m,mo->o", self.weights["bias"], pointwise["kernel"][0, 0]) + pointwise["bias"]
        return BandUpsample({"kernel": kernel, "bias": bias}, self.dtype, self.padding_mode)

    def reach(self, rows: int) -> int:
        return -(-rows // 2) + 1

    def __call__(self, band: Band) -> Band:
        # The two outermost rows of the enlarged map are equal, so that its reflection is a copy of the map's edge.
        reflect = self.padding_mode == "reflect"
        x = band.padded("edge" if reflect else "zeros")
        x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge" if reflect else "constant")
        side = self.weights["kernel"].shape[0] // 2
        x = _convolve(x, self.weights, (side, side), self.dtype, upsample_padded)
        return Band(x, 2 * (band.start + 1), 2 * band.height)


@struct.dataclass
class BandAdd:
    """Residual branch, added to its input or to the output of `shortcut`."""

    branch: tuple[BandOp, ...]
    shortcut: tuple[BandOp, ...] = ()

    def reach(self, rows: int) -> int:
        return reach_of(self.branch, rows)

    def __call__(self, band: Band) -> Band:
        h = _through(self.branch, band)
        x = _through(self.shortcut, band.crop((band.x.shape[1] - h.x.shape[1]) // 2))
        return Band(x.x + h.x, h.start, h.height)


def _convolve(
    x: Array, weights: BandWeights, padding: tuple[int, int], dtype: Dtype | None, convolution: Callable[..., Array]
) -> Array:
    """Returns the convolution, padded to the left and right, and not padded above and below."""
    height, width, _, features = weights["kernel"].shape
    conv = Convolution(features, (height, width), padding=((0, 0), padding), dtype=dtype, convolution=convolution)
    return jnp.asarray(conv.apply({"params": weights}, x))


def _per_channel(x: Array) -> Array:
    return x[None, None, None, :]


def reach_of(steps: tuple[BandOp, ...], rows: int = 0) -> int:
    """Returns `BandOp.reach` of a sequence of operations."""
    for step in reversed(steps):
        rows = step.reach(rows)
    return rows


def widest_of(steps: tuple[BandOp, ...]) -> int:
    """Returns the largest number of channels among the results of the convolutions of a sequence of operations."""
    return max((leaf.shape[-1] for leaf in jax.tree.leaves(steps) if leaf.ndim == 4), default=1)


def _through(steps: tuple[BandOp, ...], band: Band) -> Band:
    for step in steps:
        band = step(band)
    return band


@partial(jax.jit, static_argnames=("heights", "rows", "keep"))
def run_ops(
    branches: tuple[tuple[BandOp, ...], ...],
    bands: tuple[Float[Array, "n w c"], ...],
    starts: tuple[Array, ...],
    *,
    heights: tuple[int, ...],
    rows: int,
    keep: bool,
) -> tuple[Array | None, Array, Array]:
    """Returns the sum of branches (if `keep`), and mean and squared deviation of each of its rows.

    Positions are arguments instead of constants, so that all bands of a map share a program.

    Args:
      branches: Operations of each branch, in order.
      bands: Input of each branch; the middle `rows` rows of its output are added.
      starts: Number of the first row of each band in its map.
      heights: Heights of these maps.
      rows: Number of rows of the result.
      keep: Whether the sum is returned.
    """
    parts = []
    for steps, x, start, height in zip(branches, bands, starts, heights, strict=True):
        band = _through(steps, Band(x[None], start, height))
        parts.append(band.crop((band.x.shape[1] - rows) // 2).x[0])
    y = sum(parts[1:], parts[0])
    y32 = jnp.asarray(y, jnp.promote_types(y.dtype, jnp.float32))  # at least float32
    mean = y32.mean(1)
    return y if keep else None, mean, jnp.square(y32 - mean[:, None]).sum(1)
