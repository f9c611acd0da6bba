"""Nearest upsampling and the convolution behind it, as convolutions of the small map where that is faster."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from flax_vae.convolution import convolve


def upsample_and_convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "3 3 i o"],
    window_strides: Any,
    padding: Any,
    **options: Any,
) -> Float[Array, "b 2*h 2*w o"]:
    """Stands in for `jax.lax.conv_general_dilated`: pixels become squares of four, then a 3x3 convolution.

    On a CPU the four pixels of a square are four 2x2 convolutions of the small map, 4/9 of the arithmetic: of three
    neighbours in the large map two always come from the same pixel, and their weights are added.
    """

    def as_written(x: Array, kernel: Array) -> Array:
        return convolve(x.repeat(2, axis=1).repeat(2, axis=2), kernel, window_strides, padding, **options)

    def folded(x: Array, kernel: Array) -> Array:
        def corner(row: int, column: int) -> Array:
            pad = ((1 - row, row), (1 - column, column))
            return convolve(x, fold(fold(kernel, 0, row), 1, column), (1, 1), pad, **options)

        corners = jnp.stack([jnp.stack([corner(row, column) for column in (0, 1)]) for row in (0, 1)])
        return rearrange(corners, "row column b h w o -> b (h row) (w column) o")

    if x.dtype.itemsize < 4:  # a sum of two weights is one more rounding, which half precision would show
        return as_written(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=folded, default=as_written)


def fold(kernel: Array, axis: int, odd: int) -> Array:
    """Three weights along `axis` to the two by which an even (or odd) pixel of the large map meets the small one."""
    first, middle, last = jnp.split(kernel, 3, axis)
    return jnp.concatenate([first + middle, last] if odd else [first, middle + last], axis)
