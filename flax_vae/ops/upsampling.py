"""Nearest upsampling and the convolution behind it, as convolutions of the small map where that is faster."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flax_vae.ops.broadcasting import broadcast
from flax_vae.ops.convolution import convolve
from flax_vae.ops.linear_maps import Arrays, linear

# Sums of a kernel's three weights along one direction, by which two pixels of the small map are multiplied: for even
# pixels of the large map, and for odd ones.
FOLD = (np.array([[1, 0, 0], [0, 1, 1]]), np.array([[1, 1, 0], [0, 0, 1]]))
CORNERS = tuple(np.kron(row, column) for row in FOLD for column in FOLD)


def upsample_and_convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "3 3 i o"],
    window_strides: Any,
    padding: Any,
    **options: Any,
) -> Float[Array, "b 2*h 2*w o"]:
    """Doubles height and width by nearest-neighbour upsampling, then convolves with a 3x3 kernel.

    Takes the arguments of `jax.lax.conv_general_dilated`.  On a CPU, the four pixels that replace one are computed by
    four 2x2 convolutions of the small map, with 4/9 of the arithmetic: of three neighbours in the large map, two are
    copies of one pixel, so their weights are added.
    """

    def as_written(x: Array, kernel: Array) -> Array:
        return convolve(_doubled(x), kernel, window_strides, padding, **options)

    def folded(x: Array, kernel: Array) -> Array:
        pads = [((1 - row, row), (1 - column, column)) for row in (0, 1) for column in (0, 1)]
        kernels = corner_kernels(kernel)
        corners = [convolve(x, corner, (1, 1), pad, **options) for corner, pad in zip(kernels, pads, strict=True)]
        return _put_together(corners)

    if x.dtype.itemsize < 4:  # summing weights rounds once more, which half precision would show
        return as_written(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=folded, default=as_written)


def _doubled(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    b, h, w, c = x.shape
    return broadcast(x.reshape(b, h, 1, w, 1, c), (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def _put_together(corners: list[Float[Array, "b h w c"]]) -> Float[Array, "b 2*h 2*w c"]:
    """Interleaves four maps: the top left, top right, bottom left and bottom right pixels of each square.

    Joins pixels beside each other first, then rows, so that channels are copied in whole runs.  XLA would repeat a
    single transpose in each of its consumers.
    """
    b, h, w, c = corners[0].shape
    rows = [jnp.stack(corners[first : first + 2], axis=3).reshape(b, h, 2 * w, c) for first in (0, 2)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, c)


def corner_kernels(kernel: Float[Array, "3 3 i o"]) -> tuple[Float[Array, "2 2 i o"], ...]:
    """Returns the 2x2 kernels that compute the four pixels of each square from the small map, row by row.

    Their weights are sums of the 3x3 kernel's, written as products with matrices of zeros and ones: slices, sums and
    concatenations take XLA ten times as long to compile.
    """
    corner = jax.ShapeDtypeStruct((2, 2, *kernel.shape[2:]), kernel.dtype)
    return linear(_corners, _kernel_gradient, (), (kernel,), like=(corner,) * 4)


def _corners(_: Arrays, kernels: Arrays) -> Arrays:
    (kernel,) = kernels
    flat = kernel.reshape(9, -1)
    # Without this, an accelerator rounds the weights before it multiplies.
    corners = (jnp.matmul(meets.astype(kernel.dtype), flat, precision="highest") for meets in CORNERS)
    return tuple(corner.reshape(2, 2, *kernel.shape[2:]) for corner in corners)


def _kernel_gradient(_: Arrays, d_corners: Arrays) -> Arrays:
    # A single product: the transposes of four would write four gradients of the whole kernel and add them.
    flat = jnp.concatenate([d_corner.reshape(4, -1) for d_corner in d_corners])
    d_kernel = jnp.matmul(np.concatenate(CORNERS).T.astype(flat.dtype), flat, precision="highest")
    return (d_kernel.reshape(3, 3, *d_corners[0].shape[2:]),)
