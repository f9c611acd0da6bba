"""Upsampling and convolution as four convolutions of the small map."""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_vae.ops.convolution import convolve
from flax_vae.ops.folded_kernels import corner_kernels
from flax_vae.ops.reflection import replicated


def convolve_corners(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "3 3 i o"],
    *,
    padding_mode: Literal["zeros", "reflect"] = "zeros",
    **options: Any,
) -> Float[Array, "b 2*h 2*w o"]:
    """Returns the 3x3 convolution of an upsampled map, with 4/9 of the arithmetic.

    Args:
      x: Map before upsampling.
      kernel: Kernel of the upsampled map.
      padding_mode: With what the upsampled map is padded.
      options: Options of `convolve`.
    """
    paddings = [((1 - row, row), (1 - column, column)) for row in (0, 1) for column in (0, 1)]
    kernels = [corner.astype(x.dtype) for corner in corner_kernels(kernel)]
    if padding_mode == "reflect":
        # The two outermost rows of the upsampled map are equal, so that its reflection is a copy of the map's edge.
        maps = [replicated(x, padding) for padding in paddings]
        return _interleave(
            [convolve(m, k, (1, 1), ((0, 0), (0, 0)), **options) for m, k in zip(maps, kernels, strict=True)]
        )
    return _interleave([convolve(x, k, (1, 1), p, **options) for k, p in zip(kernels, paddings, strict=True)])


def _interleave(corners: list[Float[Array, "b h w c"]]) -> Float[Array, "b 2*h 2*w c"]:
    """Interleaves four maps: the top left, top right, bottom left and bottom right pixels of each square.

    Joins pixels beside each other first, then rows, so that channels are copied in whole runs.  XLA would repeat a
    single transpose in each of its consumers.
    """
    b, h, w, c = corners[0].shape
    rows = [jnp.stack(corners[first : first + 2], axis=3).reshape(b, h, 2 * w, c) for first in (0, 2)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, c)
