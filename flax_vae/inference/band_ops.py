"""A band of rows on its way through the decoder: what the device computes when it gets a large image piece by piece.

A band brings along the rows above and below that its convolutions reach.  Each convolution uses some of them up, so
that what comes out is what the whole map would have given.  A band knows where in the map it stands, because a
convolution sees zeros outside.

Shapes: `n` rows of a band, `h w` height and width of a map, `c` channels, `t` width of the time embedding.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import struct
from flax.typing import Dtype
from jaxtyping import Array, Float

from flax_vae.attention import attention
from flax_vae.layers import NORM_EPS, swish
from flax_vae.ops import Conv as Convolution
from flax_vae.ops import Dense, convolve, corner_kernels

BandWeights = dict[str, Any]


@dataclass(frozen=True)
class Band:
    """Consecutive rows of a map that is `height` high; the first is row `start`, and some may lie outside."""

    x: Float[Array, "1 n w c"]
    start: Array
    height: int

    def crop(self, rows: int) -> "Band":
        """Returns the band without its first and last `rows` rows."""
        return Band(self.x[:, rows : self.x.shape[1] - rows], self.start + rows, self.height)

    def padded(self) -> Float[Array, "1 n w c"]:
        """Returns the rows, zero where they lie outside the map: what a convolution of the whole map sees there."""
        row = self.start + jnp.arange(self.x.shape[1])
        inside = (row >= 0) & (row < self.height)
        return jnp.where(inside[None, :, None, None], self.x, 0)


class BandOp(Protocol):
    """A part of the decoder; its weights are leaves of a tree, so that one program serves all blocks of a shape."""

    def reach(self, rows: int) -> int:
        """Returns how many rows beyond the band go in, on either side, for `rows` beyond it to come out right."""
        ...

    def __call__(self, band: Band) -> Band:
        """Returns what comes out."""
        ...


@struct.dataclass
class BandConv:
    """A convolution of stride 1; a 3x3 one takes a row from either side of the band."""

    weights: BandWeights
    dtype: Dtype | None = struct.field(pytree_node=False)

    def reach(self, rows: int) -> int:
        return rows + self.weights["kernel"].shape[0] // 2

    def __call__(self, band: Band) -> Band:
        side = self.weights["kernel"].shape[0] // 2
        x = _convolve(band.padded() if side else band.x, self.weights, (side, side), self.dtype)
        return Band(x, band.start + side, band.height)


@struct.dataclass
class BandNorm:
    """Group normalisation with the given mean and variance of every channel, and swish where wanted."""

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
    """The projected time embedding, added to every position."""

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
    """Attention of the band's positions to those of the whole map."""

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
    """Every pixel becomes four, then a 3x3 convolution; without the doubled map, and with 4/9 of the arithmetic.

    In a doubled map a 3x3 kernel meets 2x2 different pixels, so the weights that meet the same one are summed first.
    Each of the four pixels that one becomes has its own such sums.
    """

    weights: BandWeights
    dtype: Dtype | None = struct.field(pytree_node=False)

    def reach(self, rows: int) -> int:
        return -(-rows // 2) + 1

    def __call__(self, band: Band) -> Band:
        x = band.padded()
        corners = [(below, right) for below in (0, 1) for right in (0, 1)]
        pixels = [
            _convolve(
                x[:, below : x.shape[1] - 1 + below], self.weights | {"kernel": kernel}, (1 - right, right), self.dtype
            )
            for (below, right), kernel in zip(corners, corner_kernels(self.weights["kernel"]), strict=True)
        ]
        x = rearrange(pixels, "(below right) b n w c -> b (n below) (w right) c", below=2)
        return Band(x, 2 * (band.start + 1), 2 * band.height)


@struct.dataclass
class BandAdd:
    """A branch, added to its input or to what `shortcut` makes of it."""

    branch: tuple[BandOp, ...]
    shortcut: tuple[BandOp, ...] = ()

    def reach(self, rows: int) -> int:
        return reach_of(self.branch, rows)

    def __call__(self, band: Band) -> Band:
        h = _through(self.branch, band)
        x = _through(self.shortcut, band.crop((band.x.shape[1] - h.x.shape[1]) // 2))
        return Band(x.x + h.x, h.start, h.height)


def _convolve(x: Array, weights: BandWeights, padding: tuple[int, int], dtype: Dtype | None) -> Array:
    """Returns the convolution, with zeros to the left and right; above and below the band has to suffice."""
    height, width, _, features = weights["kernel"].shape
    conv = Convolution(features, (height, width), padding=((0, 0), padding), dtype=dtype, convolution=convolve)
    return jnp.asarray(conv.apply({"params": weights}, x))


def _per_channel(x: Array) -> Array:
    return x[None, None, None, :]


def reach_of(steps: tuple[BandOp, ...], rows: int = 0) -> int:
    """Returns `Step.reach` of steps taken one after the other."""
    for step in reversed(steps):
        rows = step.reach(rows)
    return rows


def _through(steps: tuple[BandOp, ...], band: Band) -> Band:
    for step in steps:
        band = step(band)
    return band


@partial(jax.jit, static_argnames=("height", "rows", "keep"))
def run_ops(
    steps: tuple[BandOp, ...], x: Float[Array, "n w c"], start: Array, *, height: int, rows: int, keep: bool
) -> tuple[Array | None, Array, Array]:
    """Returns what becomes of the middle `rows` rows of `x`, if to be kept, and mean and squared deviation of each row.

    The position is an argument and not a constant: all bands of a map are one program.
    """
    band = _through(steps, Band(x[None], start, height))
    rows *= band.height // height
    y = band.crop((band.x.shape[1] - rows) // 2).x[0]
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    mean = wide.mean(1)
    return y if keep else None, mean, jnp.square(wide - mean[:, None]).sum(1)
