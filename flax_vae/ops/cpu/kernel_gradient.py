"""The gradient of a convolution's kernel as one matrix product for each of its taps: what a CPU wants."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]

# Large is a map with more positions than this for each input channel.
LARGE = 2

# Of a large map so many positions are multiplied at a time: what four times as many make does not stay in the caches.
BAND_POSITIONS = 4096


def kernel_gradient(
    x: Float[Array, "b h w i"],
    d_out: Float[Array, "b h2 w2 o"],
    kernel_size: tuple[int, int],
    stride: int,
    padding: Padding,
) -> Float[Array, "kh kw i o"]:
    """Returns the gradient by the kernel of a convolution of `x` whose output has the gradient `d_out`.

    XLA writes this as a convolution whose window is the whole map, which its CPU kernels run at a quarter to a half
    of the speed of the forward one.  Here each tap of the kernel is the product of `d_out` with what that tap sees,
    summed over all positions.

    Args:
      x: the input.
      d_out: the gradient by the output.
      kernel_size: height and width of the kernel.
      stride: in both directions.
      padding: (before, after) of h and of w.
    """
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, ((0, 0, 0), *((before, after, 0) for before, after in padding), (0, 0, 0)))
    # The sum goes along the first axis of both, which a product would have to turn over each time: it is done once.
    # Turning `d_out` is the faster, but turns the result as well, and where kernels are large that costs more.
    b, h2, w2, _ = d_out.shape
    of = _of_large_map if b * h2 * w2 > LARGE * x.shape[-1] else _of_small_map
    return of(x, d_out, kernel_size, stride)


def _of_small_map(x: Array, d_out: Array, kernel_size: tuple[int, int], stride: int) -> Array:
    kh, kw = kernel_size
    b, h2, w2, o = d_out.shape
    i = x.shape[-1]
    turned = x.reshape(-1, i).T.reshape(i, *x.shape[:3])
    d_out = d_out.reshape(b * h2 * w2, o)

    def of_tap(tap: Array) -> Array:
        window = (i, b, (h2 - 1) * stride + 1, (w2 - 1) * stride + 1)
        seen = lax.dynamic_slice(turned, (0, 0, tap // kw, tap % kw), window)[:, :, ::stride, ::stride]
        return jnp.matmul(seen.reshape(i, b * h2 * w2), d_out, preferred_element_type=_sum_dtype(x))

    return lax.map(of_tap, jnp.arange(kh * kw)).reshape(kh, kw, i, o)


def _of_large_map(x: Array, d_out: Array, kernel_size: tuple[int, int], stride: int) -> Array:
    kh, kw = kernel_size
    b, h2, w2, o = d_out.shape
    i = x.shape[-1]
    rows = min(max(BAND_POSITIONS // w2, 1), h2)
    bands = -(-h2 // rows)
    # Bands of equal height: below the map there are rows of zeros, which add nothing.
    x = _with_rows(x, (bands * rows - 1) * stride + kh)
    turned = _with_rows(d_out, bands * rows).reshape(-1, o).T

    def of_band(number: Array) -> Array:
        d_band = lax.dynamic_slice_in_dim(turned, number * rows * w2, rows * w2, axis=1)

        def of_tap(tap: Array) -> Array:
            first = (number // bands, number % bands * rows * stride + tap // kw, tap % kw, 0)
            window = (1, (rows - 1) * stride + 1, (w2 - 1) * stride + 1, i)
            seen = lax.dynamic_slice(x, first, window)[0, ::stride, ::stride]
            return jnp.matmul(d_band, seen.reshape(rows * w2, i), preferred_element_type=_sum_dtype(x))

        return lax.map(of_tap, jnp.arange(kh * kw))

    if b * bands == 1:
        total = of_band(jnp.array(0))
    else:
        start = jnp.zeros((kh * kw, o, i), _sum_dtype(x))
        total, _ = lax.scan(lambda total, number: (total + of_band(number), None), start, jnp.arange(b * bands))
    return total.mT.reshape(kh, kw, i, o)


def _with_rows(x: Array, rows: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, max(rows - x.shape[1], 0)), (0, 0), (0, 0)))


def _sum_dtype(x: Array):
    return jnp.promote_types(x.dtype, jnp.float32)
