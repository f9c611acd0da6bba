"""3x3 convolutions of many channels, with 4 multiplications where there are 9: what a CPU wants for them.

Winograd's minimal filtering F(2x2, 3x3): a square of 2x2 outputs sees 4x4 inputs.  Sums of these meet sums of the
weights, 16 products instead of 36, and each output is a sum of products.  All sums have small factors, so that little
is lost: with 512 channels the rounding error is 1.7 times that of XLA's convolution.

Source: Lavin and Gray 2015 (arXiv:1509.09308), section 4.1.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]

# The sums are copies four times as large as the map, and 16/9 as large as the kernel: they pay with so many numbers in
# each of a kernel's taps, and while they fit the last cache.  Measured on two cores, 512 channels: at 32 x 32 7.6 ms
# instead of 12.8, at 64 x 64 34 instead of 52.  With 256 channels they gain next to nothing.
LEAST_NUMBERS = 2**18
MOST_POSITIONS = 2**12

# Sums are products with constant matrices: written as slices and additions they take XLA far longer to compile.
# How each of four sums along one direction is made: of a tile's inputs, of the kernel's weights; and how each of a
# square's two outputs is made of the products.
OF_INPUTS = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
OF_WEIGHTS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
OF_PRODUCTS = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])

# The sums of a whole tile, its inputs in the order in which its squares and their pixels are put together.
OF_TILES = rearrange(np.kron(OF_INPUTS, OF_INPUTS), "k (y a x b) -> k (y x a b)", y=2, a=2, x=2)


def is_worth_winograd(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], strides: tuple[int, int], padding: Padding
) -> bool:
    """Whether `winograd` does the same, and is faster than XLA's convolution or than the gradient of that by its input.

    Where `flax_vae.ops.cpu.small_maps` applies, that is faster still.
    """
    b, h, w, _ = x.shape
    kh, kw, i, o = kernel.shape
    same = (kh, kw) == (3, 3) and strides == (1, 1) and padding == ((1, 1), (1, 1)) and h % 2 == w % 2 == 0
    # Half precision has kernels of its own.
    return same and x.dtype.itemsize >= 4 and i * o >= LEAST_NUMBERS and b * h * w <= MOST_POSITIONS


def winograd(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"], *, backwards: bool = False
) -> Float[Array, "b h w o"]:
    """Returns the 3x3 convolution of `x`, zeros around it; h and w are even.

    Args:
      x: the map; backwards the gradient by the output, `b h w o`.
      kernel: the weights.
      backwards: return the gradient by the input instead, `b h w i`, which is the convolution with the kernel turned by
        180 degrees and its channels exchanged.
    """
    b, h, w, channels = x.shape
    # A tile is four squares: its own, the next to the right, and the two below.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    squares = rearrange(x, "b (h y) (w x) c -> (y x) b h w c", y=2, x=2)
    h, w = h // 2, w // 2
    inputs = jnp.stack([squares[:, :, y : y + h, x : x + w] for y in (0, 1) for x in (0, 1)])
    tiles = jnp.matmul(OF_TILES.astype(x.dtype), inputs.reshape(16, -1)).reshape(16, b * h * w, channels)
    of_weights = OF_WEIGHTS[:, ::-1] if backwards else OF_WEIGHTS
    of_weights = np.kron(of_weights, of_weights).astype(kernel.dtype)
    weights = jnp.matmul(of_weights, kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])
    products = lax.dot_general(tiles, weights, (((2,), (2 if backwards else 1,)), ((0,), (0,))))
    corners = jnp.matmul(np.kron(OF_PRODUCTS, OF_PRODUCTS).astype(x.dtype), products.reshape(16, -1))
    return rearrange(corners, "(y x) (b h w c) -> b (h y) (w x) c", y=2, b=b, h=h, w=w)
