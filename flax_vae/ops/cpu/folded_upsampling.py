"""Upsampling and convolution, computed from the small map.

Along one direction, nearest-neighbour upsampling and a convolution with the weights `a b c` give two pixels for each
pixel `y` between `x` and `z`: `a x + (b + c) y` and `(a + b) y + c z`.  With `s = a + b + c` they are `s y - a (y - x)`
and `s y + c (z - y)`: three products instead of four, since the first one is shared.  In two directions there are nine
products for four pixels, where the upsampled map takes 36.  All of them are matrix products.
"""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flax_vae.ops.convolution import convolve, is_exact
from flax_vae.ops.folded_kernels import corner_kernels
from flax_vae.ops.reflection import replicated

# Weights of the three products by those of the kernel: of the difference to the pixel before, the pixel itself, and the
# difference to the pixel after.  A product with a constant matrix compiles far sooner than slices and additions.
SUMS = np.array([[-1, 0, 0], [1, 1, 1], [0, 0, 1]])


def convolve_corners(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "3 3 i o"],
    *,
    padding_mode: Literal["zeros", "reflect"] = "zeros",
    **options: Any,
) -> Float[Array, "b 2*h 2*w o"]:
    """Returns the 3x3 convolution of an upsampled map, with at most 4/9 of the arithmetic.

    Args:
      x: Map before upsampling.
      kernel: Kernel of the upsampled map.
      padding_mode: With what the upsampled map is padded.
      options: Options of `convolve`.
    """
    sides = ((1, 1), (1, 1))
    # The two outermost rows of the upsampled map are equal, so that its reflection is a copy of the map's edge.
    x = replicated(x, sides) if padding_mode == "reflect" else jnp.pad(x, ((0, 0), *sides, (0, 0)))
    return convolve_padded(x, kernel, **options)


def convolve_padded(
    x: Float[Array, "b h+2 w+2 i"], kernel: Float[Array, "3 3 i o"], **options: Any
) -> Float[Array, "b 2*h 2*w o"]:
    """Returns the same of a map that already has a pixel more on every side, in the best way on a CPU.

    Args:
      x: Map before upsampling, padded.
      kernel: Kernel of the upsampled map.
      options: Options of `convolve`.
    """
    # Differences have 1.4 times the rounding error.
    if is_exact(x, options.get("precision")) or x.dtype.itemsize < 4:
        return four_convolutions(x, kernel, **options)
    return _nine_products(x, kernel)


def _nine_products(x: Float[Array, "b h+2 w+2 i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "b 2*h 2*w o"]:
    b, h, w, _ = x.shape
    h, w, o = h - 2, w - 2, kernel.shape[-1]
    sums = jnp.matmul(np.kron(SUMS, SUMS).astype(kernel.dtype), kernel.reshape(9, -1))
    sums = sums.reshape(kernel.shape).astype(x.dtype)
    between_columns, between_rows = x[:, :, 1:] - x[:, :, :-1], x[:, 1:, 1:-1] - x[:, :-1, 1:-1]
    between_both = between_columns[:, 1:] - between_columns[:, :-1]

    def columns(x: Array, row: int) -> Array:
        """Returns the pixels that differences between columns add: to the last before, and to the first after."""
        pairs = jnp.matmul(x, jnp.concatenate([sums[row, 2], sums[row, 0]], -1))
        return pairs.reshape(b, h, 2 * w + 2, o)[:, :, 1:-1]

    def twice(x: Array) -> Array:
        return jnp.broadcast_to(x[:, :, :, None], (b, h, w, 2, o)).reshape(b, h, 2 * w, o)

    both = twice(jnp.matmul(x[:, 1:-1, 1:-1], sums[1, 1])) + columns(between_columns[:, 1:-1], 1)
    rows = [
        both
        + twice(jnp.matmul(between_rows[:, first : first + h], sums[row, 1]))
        + columns(between_both[:, first : first + h], row)
        for first, row in ((0, 0), (1, 2))
    ]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, o)


def four_convolutions(
    x: Float[Array, "b h+2 w+2 i"], kernel: Float[Array, "3 3 i o"], **options: Any
) -> Float[Array, "b 2*h 2*w o"]:
    """Returns the same as `convolve_padded`, by a convolution for each pixel of a square.

    Joins pixels beside each other first, then rows, so that channels are copied in whole runs.  XLA would repeat a
    single transpose in each of its consumers.
    """
    b, h, w, _ = x.shape
    h, w = h - 2, w - 2
    places = [(row, column) for row in (0, 1) for column in (0, 1)]
    pixels = [
        convolve(
            x[:, row : row + h + 1, column : column + w + 1],
            corner.astype(x.dtype),
            (1, 1),
            ((0, 0), (0, 0)),
            **options,
        )
        for (row, column), corner in zip(places, corner_kernels(kernel), strict=True)
    ]
    rows = [jnp.stack(pixels[first : first + 2], axis=3).reshape(b, h, 2 * w, -1) for first in (0, 2)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, -1)
