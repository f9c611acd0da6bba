"""Convolutions whose kernel is larger than the map, as one matrix product: what a CPU wants for them.

XLA's convolution brings the whole kernel into another order at each call, and in the backward pass into yet another
before that.  Where a map has few positions, that takes longer than the arithmetic.  Here the kernel stays as it lies in
memory, and what is copied is of the map.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]

# From so many numbers in each of a kernel's taps on, and with at most so many positions for each channel.  Measured on
# two cores, 512 channels: at 16 x 16 forwards 4.3 ms instead of 9.0, backwards 4.0 instead of 12.8; at 32 x 32 forwards
# no faster.  With 256 channels neither is.
LEAST_NUMBERS = 2**18
MOST_POSITIONS = 1


def is_small(x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], strides: tuple[int, int]) -> bool:
    """Whether this is faster than XLA's convolution, and than the gradient of that by its input."""
    positions = x.shape[0] * x.shape[1] * x.shape[2]
    _, _, i, o = kernel.shape
    # Half precision has kernels of its own.
    few = positions <= MOST_POSITIONS * min(i, o)
    return strides == (1, 1) and x.dtype.itemsize >= 4 and i * o >= LEAST_NUMBERS and few


def convolve_small(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], padding: Padding
) -> Float[Array, "b h2 w2 o"]:
    """Returns what `jax.lax.conv_general_dilated` does with stride 1: every position's patch times the kernel."""
    kh, kw, i, o = kernel.shape
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0)))
    h2, w2 = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    patches = jnp.concatenate([x[:, row : row + h2, column : column + w2] for row, column in _taps(kernel)], axis=-1)
    return jnp.matmul(patches, kernel.reshape(kh * kw * i, o))


def small_input_gradient(
    d_out: Float[Array, "b h2 w2 o"], kernel: Float[Array, "kh kw i o"], padding: Padding
) -> Float[Array, "b h w i"]:
    """Returns the gradient by the input of `convolve_small`: what every tap sends back, each to its own place."""
    kh, kw, i, o = kernel.shape
    (top, bottom), (left, right) = padding
    # Both sides are read along their last axis, so that the kernel need not be turned over.
    sent = lax.dot_general(d_out, kernel.reshape(kh * kw * i, o), (((3,), (1,)), ((), ())))
    zero = jnp.zeros((), sent.dtype)
    d_x = 0
    for number, (row, column) in enumerate(_taps(kernel)):
        rows = (row - top, kh - 1 - row - bottom, 0)
        columns = (column - left, kw - 1 - column - right, 0)
        d_x += lax.pad(sent[..., number * i : (number + 1) * i], zero, ((0, 0, 0), rows, columns, (0, 0, 0)))
    return jnp.asarray(d_x)


def _taps(kernel: Array) -> list[tuple[int, int]]:
    return [(row, column) for row in range(kernel.shape[0]) for column in range(kernel.shape[1])]
