"""Kernels that convolve a map as if it had been upsampled before.

Nearest-neighbour upsampling replaces each pixel by a square of four.  A 3x3 kernel then covers copies of 2x2 pixels at
each corner of the square, so four 2x2 kernels of the small map replace one 3x3 kernel of the large map.  Interleaved,
they are the 4x4 kernel of a transposed convolution with stride 2.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flax_vae.ops.linear_maps import Arrays, linear

# Sums of a kernel's three weights along one direction, by which two pixels of the small map are multiplied: for even
# pixels of the large map, and for odd ones.
FOLD = (np.array([[1, 0, 0], [0, 1, 1]]), np.array([[1, 1, 0], [0, 0, 1]]))
CORNERS = tuple(np.kron(row, column) for row in FOLD for column in FOLD)


def corner_kernels(kernel: Float[Array, "3 3 i o"]) -> tuple[Float[Array, "2 2 i o"], ...]:
    """Returns the 2x2 kernels that compute the four pixels of each square from the small map, row by row.

    Their weights are sums of the 3x3 kernel's, written as products with matrices of zeros and ones: slices, sums and
    concatenations take XLA ten times as long to compile for a CPU.
    """
    corner = jax.ShapeDtypeStruct((2, 2, *kernel.shape[2:]), kernel.dtype)
    return linear(_corners, _kernel_gradient, (), (kernel,), like=(corner,) * 4)


def transposed_kernel(kernel: Float[Array, "3 3 i o"]) -> Float[Array, "4 4 i o"]:
    """Returns the corner kernels, interleaved: `[y::2, x::2]` is that of corner `y, x`.

    The sums are written as such, in float32 at least: accelerators add faster than they multiply at full precision.
    """
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    for axis in (0, 1):
        first, middle, last = jnp.split(kernel, 3, axis)
        kernel = jnp.concatenate([first, first + middle, middle + last, last], axis)
    return kernel


def transposed_kernel_gradient(d_kernel: Float[Array, "4 4 i o"]) -> Float[Array, "3 3 i o"]:
    """Returns the transpose of `transposed_kernel`, in float32 at least."""
    d_kernel = d_kernel.astype(jnp.promote_types(d_kernel.dtype, jnp.float32))
    for axis in (0, 1):
        parts = jnp.split(d_kernel, 4, axis)
        d_kernel = jnp.concatenate([parts[0] + parts[1], parts[1] + parts[2], parts[2] + parts[3]], axis)
    return d_kernel


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
