"""Convolution of a map that is smaller than the kernel, as one matrix product.

At each call, XLA's convolution copies the whole kernel into another order, and in the backward pass into a third one.
For a map of few positions that takes longer than the arithmetic.  Here the kernel is used as it is stored, and parts of
the map are copied.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flax_vae.ops.conv_method import ConvSpec

# Fewest weights of a kernel's tap, and most positions for each channel.  Measured on two cores with 512 channels: at
# 16 x 16 forward 4.3 ms instead of 9.0, backward 4.0 instead of 12.8; at 32 x 32 the forward pass is not faster.  With
# 256 channels neither is.
LEAST_NUMBERS = 2**18
MOST_POSITIONS = 1


def is_small(spec: ConvSpec) -> bool:
    """Returns whether the matrix product is faster than XLA's convolution, and than its gradient by the input."""
    b, h, w, _ = spec.x.shape
    _, _, i, o = spec.kernel.shape
    few = b * h * w <= MOST_POSITIONS * min(i, o)
    # XLA has other kernels for half precision.
    return few and i * o >= LEAST_NUMBERS and spec.strides == (1, 1) and spec.x.dtype.itemsize >= 4


def convolve_small(
    spec: ConvSpec, x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"]
) -> Float[Array, "b h2 w2 o"]:
    """Returns the convolution with stride 1: the product of the patch of each position and the kernel."""
    kh, kw, i, o = kernel.shape
    rows, columns = spec.padding
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)))
    h2, w2 = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    patches = jnp.concatenate([x[:, row : row + h2, column : column + w2] for row, column in _taps(kernel)], axis=-1)
    return jnp.matmul(patches, kernel.reshape(kh * kw * i, o))


def small_input_gradient(
    spec: ConvSpec, kernel: Float[Array, "kh kw i o"], d_out: Float[Array, "b h2 w2 o"]
) -> Float[Array, "b h w i"]:
    """Returns the gradient by the input of `convolve_small`: a sum over the taps, each shifted to its place."""
    kh, kw, i, o = kernel.shape
    (top, bottom), (left, right) = spec.padding
    # Both operands are contracted along their last axis, so the kernel is not transposed.
    products = lax.dot_general(d_out, kernel.reshape(kh * kw * i, o), (((3,), (1,)), ((), ())))
    zero = jnp.zeros((), products.dtype)
    d_x = 0
    for number, (row, column) in enumerate(_taps(kernel)):
        rows = (row - top, kh - 1 - row - bottom, 0)
        columns = (column - left, kw - 1 - column - right, 0)
        d_x += lax.pad(products[..., number * i : (number + 1) * i], zero, ((0, 0, 0), rows, columns, (0, 0, 0)))
    return jnp.asarray(d_x)


def _taps(kernel: Array) -> list[tuple[int, int]]:
    return [(row, column) for row in range(kernel.shape[0]) for column in range(kernel.shape[1])]
