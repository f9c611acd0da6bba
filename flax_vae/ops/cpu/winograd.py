"""3x3 convolution of many channels, with 4 multiplications instead of 9.

Winograd's minimal filtering F(2x2, 3x3): a square of 2x2 outputs depends on 4x4 inputs.  Sums of these are multiplied
by sums of the weights, 16 products instead of 36, and each output is a sum of products.  All sums have small factors,
so the rounding error stays small: with 512 channels it is 1.7 times that of XLA's convolution.

Source: Lavin and Gray 2015 (arXiv:1509.09308), section 4.1.
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

from flax_vae.ops.conv_method import ConvSpec

# The sums are copies four times as large as the map and 16/9 as large as the kernel.  They pay off with at least this
# many weights in each of a kernel's taps, and while they fit the last cache.  Measured on two cores with 512 channels:
# at 32 x 32 7.6 ms instead of 12.8, at 64 x 64 34 instead of 52.  With 256 channels the gain is small.
LEAST_NUMBERS = 2**18
MOST_POSITIONS = 2**12

# Coefficients of the four sums along one direction, from the inputs of a tile and from the weights of the kernel, and
# of the two outputs of a square, from the products.  XLA compiles products with constant matrices far sooner than
# slices and additions.
FROM_INPUTS = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
FROM_WEIGHTS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
FROM_PRODUCTS = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])

# Coefficients of the sums of a whole tile, whose inputs are in the order of its squares and their pixels.
FROM_TILES = rearrange(np.kron(FROM_INPUTS, FROM_INPUTS), "k (y a x b) -> k (y x a b)", y=2, a=2, x=2)


def is_worth_winograd(spec: ConvSpec) -> bool:
    """Returns whether `winograd` computes this convolution, and faster than XLA's and than its gradient by the input.

    Where `flax_vae.ops.cpu.small_maps` applies, it is faster still.
    """
    b, h, w, _ = spec.x.shape
    kh, kw, i, o = spec.kernel.shape
    applies = (kh, kw) == (3, 3) and spec.strides == (1, 1) and spec.padding == ((1, 1), (1, 1)) and h % 2 == w % 2 == 0
    # XLA has other kernels for half precision.
    fast = spec.x.dtype.itemsize >= 4 and i * o >= LEAST_NUMBERS and b * h * w <= MOST_POSITIONS
    return applies and fast and not spec.exact


def winograd(_: ConvSpec, x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "b h w o"]:
    """Returns the 3x3 convolution of a map of even height and width, padded with zeros."""
    return _filter(x, kernel, FROM_WEIGHTS, contracted=1)


def winograd_input_gradient(
    _: ConvSpec, kernel: Float[Array, "3 3 i o"], d_out: Float[Array, "b h w o"]
) -> Float[Array, "b h w i"]:
    """Returns the gradient by the input of `winograd`.

    It is the convolution of `d_out` with the kernel turned by 180 degrees and its channels exchanged.
    """
    return _filter(d_out, kernel, FROM_WEIGHTS[:, ::-1], contracted=2)


def _filter(x: Array, kernel: Array, from_weights: np.ndarray, contracted: int) -> Array:
    b, h, w, channels = x.shape
    # A tile consists of four squares: a square, its right neighbour, and the two below.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    squares = rearrange(x, "b (h y) (w x) c -> (y x) b h w c", y=2, x=2)
    h, w = h // 2, w // 2
    inputs = jnp.stack([squares[:, :, y : y + h, x : x + w] for y in (0, 1) for x in (0, 1)])
    tiles = jnp.matmul(FROM_TILES.astype(x.dtype), inputs.reshape(16, -1)).reshape(16, b * h * w, channels)
    from_kernel = np.kron(from_weights, from_weights).astype(kernel.dtype)
    weights = jnp.matmul(from_kernel, kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])
    products = lax.dot_general(tiles, weights, (((2,), (contracted,)), ((0,), (0,))))
    corners = jnp.matmul(np.kron(FROM_PRODUCTS, FROM_PRODUCTS).astype(x.dtype), products.reshape(16, -1))
    return rearrange(corners, "(y x) (b h w c) -> b (h y) (w x) c", y=2, b=b, h=h, w=w)
