"""The gradient of a convolution's kernel as matrix products over bands of rows: what a CPU wants."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# A band's columns, laid side by side, fill a core's second-level cache; but a product wants some depth, and no more.
BAND_BYTES = 3 * 2**19
BAND_POSITIONS = (512, 1024)


def kernel_gradient(
    x: Float[Array, "b h w i"],
    d_out: Float[Array, "b h2 w2 o"],
    kernel_size: tuple[int, int],
    stride: int,
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> Float[Array, "kh kw i o"]:
    """Returns the gradient by the kernel of a convolution of `x` whose output has the gradient `d_out`.

    XLA writes this as a convolution whose window is the whole map, which its CPU kernels run at a quarter to a half
    of the speed of the forward one.  Here, band by band, the columns that the kernel's columns meet are laid side by
    side, and each of the kernel's rows is one product of those with `d_out`, summed over the band's positions.

    Args:
      x: the input.
      d_out: the gradient by the output.
      kernel_size: height and width of the kernel.
      stride: in both directions.
      padding: (before, after) of h and of w.
    """
    kh, kw = kernel_size
    b, h2, w2, o = d_out.shape
    i = x.shape[-1]
    least, most = BAND_POSITIONS
    positions = min(max(BAND_BYTES // (kw * i * x.dtype.itemsize), least), most)
    rows = min(max(positions // w2, 1), h2)
    bands = -(-h2 // rows)
    window = (rows - 1) * stride + kh
    # Bands of equal height: below the map there are rows of zeros, which add nothing.
    d_out = jnp.pad(d_out, ((0, 0), (0, bands * rows - h2), (0, 0), (0, 0)))
    d_out = d_out.reshape(b * bands, rows * w2, o)
    # A product that has to turn its left side over itself takes half as long again, so `d_out` is turned over here,
    # outside the loop, and the result behind it; but not where the kernel is the larger of the two.
    turned = b * h2 * w2 > 2 * i
    if turned:
        d_out = d_out.mT
    (top, _), (left, right) = padding
    below = (bands * rows - 1) * stride + kh - top - x.shape[1]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (top, below, 0), (left, right, 0), (0, 0, 0)))
    sum_dtype = jnp.promote_types(x.dtype, jnp.float32)

    def add_band(total: Array, band: tuple[Array, Array]) -> tuple[Array, None]:
        number, d_out = band
        first = (number // bands, number % bands * rows * stride, 0, 0)
        seen = lax.dynamic_slice(x, first, (1, window, x.shape[2], i))[0]
        seen = jnp.concatenate([seen[:, j : j + (w2 - 1) * stride + 1 : stride] for j in range(kw)], axis=-1)
        taps = [seen[j : j + (rows - 1) * stride + 1 : stride].reshape(rows * w2, kw * i) for j in range(kh)]
        if turned:
            products = [jnp.matmul(d_out, tap, preferred_element_type=sum_dtype) for tap in taps]
        else:
            over_positions = (((0,), (0,)), ((), ()))
            products = [lax.dot_general(tap, d_out, over_positions, preferred_element_type=sum_dtype) for tap in taps]
        return total + jnp.stack(products), None

    start = jnp.zeros((kh, o, kw * i) if turned else (kh, kw * i, o), sum_dtype)
    total, _ = lax.scan(add_band, start, (jnp.arange(b * bands), d_out))
    return (total.mT if turned else total).reshape(kh, kw, i, o)
