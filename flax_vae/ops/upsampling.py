"""Nearest upsampling and the convolution behind it, as convolutions of the small map where that is faster."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flax_vae.ops.broadcasting import broadcast
from flax_vae.ops.convolution import convolve
from flax_vae.ops.linear_maps import Arrays, linear

# Which of three weights add up to each of two, along one direction: for an even pixel of the large map, for an odd one.
FOLD = (np.array([[1, 0, 0], [0, 1, 1]]), np.array([[1, 1, 0], [0, 0, 1]]))
CORNERS = tuple(np.kron(row, column) for row in FOLD for column in FOLD)


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
        return convolve(_doubled(x), kernel, window_strides, padding, **options)

    def folded(x: Array, kernel: Array) -> Array:
        pads = [((1 - row, row), (1 - column, column)) for row in (0, 1) for column in (0, 1)]
        kernels = corner_kernels(kernel)
        corners = [convolve(x, corner, (1, 1), pad, **options) for corner, pad in zip(kernels, pads, strict=True)]
        return _put_together(corners)

    if x.dtype.itemsize < 4:  # a sum of two weights is one more rounding, which half precision would show
        return as_written(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=folded, default=as_written)


def _doubled(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    b, h, w, c = x.shape
    return broadcast(x.reshape(b, h, 1, w, 1, c), (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def _put_together(corners: list[Float[Array, "b h w c"]]) -> Float[Array, "b 2*h 2*w c"]:
    """Returns the map whose pixels the four are: top left, top right, bottom left, bottom right of each square.

    Pixels beside each other are put together first and then those below, so that runs of channels are copied whole; the
    consumers of a single transpose would each go through it again.
    """
    b, h, w, c = corners[0].shape
    rows = [jnp.stack(corners[first : first + 2], axis=3).reshape(b, h, 2 * w, c) for first in (0, 2)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, c)


def corner_kernels(kernel: Float[Array, "3 3 i o"]) -> tuple[Float[Array, "2 2 i o"], ...]:
    """The weights by which each of the four pixels that one becomes meets the small map, row by row.

    They are sums of the kernel's, written as products with zeros and ones: slices, sums and pieces put together take
    XLA ten times as long to compile.
    """
    corner = jax.ShapeDtypeStruct((2, 2, *kernel.shape[2:]), kernel.dtype)
    return linear(_corners, _kernel_gradient, (), (kernel,), like=(corner,) * 4)


def _corners(_: Arrays, kernels: Arrays) -> Arrays:
    (kernel,) = kernels
    flat = kernel.reshape(9, -1)
    # An accelerator would round the weights first, unless it is told not to.
    corners = (jnp.matmul(meets.astype(kernel.dtype), flat, precision="highest") for meets in CORNERS)
    return tuple(corner.reshape(2, 2, *kernel.shape[2:]) for corner in corners)


def _kernel_gradient(_: Arrays, d_corners: Arrays) -> Arrays:
    # One product: the transposes of four would write four gradients of the whole kernel, to add them up.
    flat = jnp.concatenate([d_corner.reshape(4, -1) for d_corner in d_corners])
    d_kernel = jnp.matmul(np.concatenate(CORNERS).T.astype(flat.dtype), flat, precision="highest")
    return (d_kernel.reshape(3, 3, *d_corners[0].shape[2:]),)
