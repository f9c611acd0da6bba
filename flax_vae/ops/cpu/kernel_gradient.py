"""Gradient of a convolution's kernel, as one matrix product for each tap of the kernel.

XLA computes it as a convolution whose window is the whole map, which its CPU kernels run at a quarter to a half of the
speed of the forward one.  Here the gradient of each tap is the product of the output's gradient and the inputs of that
tap, summed over all positions.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flax_vae.ops.conv_method import ConvSpec
from flax_vae.ops.linear_maps import vary_together

# Fewest input channels.  With fewer, which images and latents have, XLA needs less than half the time.
FEWEST_CHANNELS = 32

# Least ratio of positions to input channels of a large map.
LARGE = 2

# Positions of a large map that are multiplied at a time: four times as many do not stay in the caches.
BAND_POSITIONS = 4096


def has_many_channels(spec: ConvSpec) -> bool:
    """Returns whether `kernel_gradient` is faster than XLA's gradient, or has more of the digits that are asked for."""
    height, width = spec.strides
    return height == width and (spec.kernel.shape[2] >= FEWEST_CHANNELS or spec.exact)


def kernel_gradient(
    spec: ConvSpec, x: Float[Array, "b h w i"], d_out: Float[Array, "b h2 w2 o"]
) -> Float[Array, "kh kw i o"]:
    """Returns the gradient by the kernel of a convolution with one stride, from the gradient by its output."""
    padded = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*sides, 0) for sides in spec.padding), (0, 0, 0)))
    # Both operands are summed along their first axis, which a product would transpose each time; here one of them is
    # transposed once.  With `d_out` this is faster, but it transposes the result too, which costs more for large
    # kernels.
    b, h2, w2, _ = d_out.shape
    gradient = _large_map_gradient if b * h2 * w2 > LARGE * x.shape[-1] else _small_map_gradient
    kh, kw, _, _ = spec.kernel.shape
    return gradient(padded, d_out, (kh, kw), spec.strides[0]).astype(spec.kernel.dtype)


def _small_map_gradient(x: Array, d_out: Array, kernel_size: tuple[int, int], stride: int) -> Array:
    kh, kw = kernel_size
    b, h2, w2, o = d_out.shape
    i = x.shape[-1]
    transposed = x.reshape(-1, i).T.reshape(i, *x.shape[:3])
    d_out = d_out.reshape(b * h2 * w2, o)

    def tap_gradient(tap: Array) -> Array:
        window = (i, b, (h2 - 1) * stride + 1, (w2 - 1) * stride + 1)
        inputs = lax.dynamic_slice(transposed, (0, 0, tap // kw, tap % kw), window)[:, :, ::stride, ::stride]
        return jnp.matmul(inputs.reshape(i, b * h2 * w2), d_out, preferred_element_type=_sum_dtype(x))

    return lax.map(tap_gradient, jnp.arange(kh * kw)).reshape(kh, kw, i, o)


def _large_map_gradient(x: Array, d_out: Array, kernel_size: tuple[int, int], stride: int) -> Array:
    kh, kw = kernel_size
    b, h2, w2, o = d_out.shape
    i = x.shape[-1]
    rows = min(max(BAND_POSITIONS // w2, 1), h2)
    bands = -(-h2 // rows)
    # Rows of zeros below the map give bands of equal height and add nothing to the sums.
    x = _with_rows(x, (bands * rows - 1) * stride + kh)
    transposed = _with_rows(d_out, bands * rows).reshape(-1, o).T

    def band_gradient(number: Array) -> Array:
        d_band = lax.dynamic_slice_in_dim(transposed, number * rows * w2, rows * w2, axis=1)

        def tap_gradient(tap: Array) -> Array:
            first = (number // bands, number % bands * rows * stride + tap // kw, tap % kw, 0)
            window = (1, (rows - 1) * stride + 1, (w2 - 1) * stride + 1, i)
            inputs = lax.dynamic_slice(x, first, window)[0, ::stride, ::stride]
            return jnp.matmul(d_band, inputs.reshape(rows * w2, i), preferred_element_type=_sum_dtype(x))

        return lax.map(tap_gradient, jnp.arange(kh * kw))

    if b * bands == 1:
        total = band_gradient(jnp.array(0))
    else:
        start, *_ = vary_together(jnp.zeros((kh * kw, o, i), _sum_dtype(x)), x, d_out)
        total, _ = lax.scan(lambda total, number: (total + band_gradient(number), None), start, jnp.arange(b * bands))
    return total.mT.reshape(kh, kw, i, o)


def _with_rows(x: Array, rows: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, max(rows - x.shape[1], 0)), (0, 0), (0, 0)))


def _sum_dtype(x: Array):
    return jnp.promote_types(x.dtype, jnp.float32)
