"""Nearest-neighbour upsampling with the convolution that follows it.

Both together are a transposed convolution of the small map with stride 2, whose 4x4 kernel consists of sums of the 3x3
kernel's weights: 4/9 of the arithmetic, forwards and backwards.  Its gradients are strided convolutions.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flax_vae.ops.broadcasting import broadcast
from flax_vae.ops.conv_method import (
    LAYOUT,
    ConvFunction,
    ConvSpec,
    xla_convolution,
    xla_input_gradient,
    xla_kernel_gradient,
)
from flax_vae.ops.convolution import convolve
from flax_vae.ops.cpu.folded_upsampling import convolve_corners, convolve_padded, four_convolutions
from flax_vae.ops.folded_kernels import transposed_kernel, transposed_kernel_gradient
from flax_vae.ops.linear_maps import bilinear, vary_together
from flax_vae.ops.reflection import replicated


def upsample_and_convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "3 3 i o"],
    window_strides: Any,
    padding: Any,
    padding_mode: Literal["zeros", "reflect"] = "zeros",
    **options: Any,
) -> Float[Array, "b 2*h 2*w o"]:
    """Doubles height and width by nearest-neighbour upsampling, then convolves with a 3x3 kernel.

    Args:
      x: Map before upsampling.
      kernel: Kernel of the upsampled map, in any dtype.  Its weights are summed in the wider of both dtypes, in float32
        at least, and rounded once to the dtype of `x`.
      window_strides: Strides of the convolution; always 1.
      padding: Padding of the convolution; always one pixel on every side.
      padding_mode: With what the upsampled map is padded.
      options: Options of `convolve`.

    Returns:
      Convolution of the upsampled map.

    Raises:
      ValueError: If strides or padding are others.
    """
    if (*window_strides, *padding) != (1, 1, (1, 1), (1, 1)):
        raise ValueError(f"window_strides={window_strides}, padding={padding}; expected (1, 1), ((1, 1), (1, 1))")

    kernel = kernel.astype(jnp.promote_types(kernel.dtype, x.dtype))

    def as_written(x: Array, kernel: Array) -> Array:
        return convolve(
            _doubled(x), kernel.astype(x.dtype), window_strides, padding, padding_mode=padding_mode, **options
        )

    ways = {platform: partial(way, padding_mode=padding_mode, **options) for platform, way in WAYS.items()}
    if x.dtype.itemsize < 4:  # a CPU computes half precision in float32, but rounds what it passes on
        ways.pop("cpu", None)
    return lax.platform_dependent(x, kernel, **ways, default=as_written)


def upsample_padded(
    x: Float[Array, "b h+2 w+2 i"], kernel: Float[Array, "3 3 i o"], *unused: Any, **options: Any
) -> Float[Array, "b 2*h 2*w o"]:
    """Does as `upsample_and_convolve`, of a map that has a pixel more on every side in place of padding.

    Args:
      x: Map before upsampling, padded.
      kernel: Kernel of the upsampled map.
      unused: Strides and padding of a convolution.
      options: Options of `convolve`.

    Returns:
      Convolution of the upsampled map.
    """
    cpu, default = (partial(way, **options) for way in (convolve_padded, four_convolutions))
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _doubled(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    b, h, w, c = x.shape
    return broadcast(x.reshape(b, h, 1, w, 1, c), (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def _convolve_transposed(
    forward: ConvFunction,
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "3 3 i o"],
    *,
    padding_mode: Literal["zeros", "reflect"] = "zeros",
    precision: lax.PrecisionLike = None,
    dimension_numbers: Any = None,  # always that of `convolve`
) -> Float[Array, "b 2*h 2*w o"]:
    """Returns the 3x3 convolution of an upsampled map, as a transposed convolution.

    Args:
      forward: Function that computes it.  It receives the strided convolution of which it is the gradient by the input.
      x: Map before upsampling.
      kernel: Kernel of the upsampled map.
      padding_mode: With what the upsampled map is padded.
      precision: Precision of products.
      dimension_numbers: Layout.
    """
    side = 1
    if padding_mode == "reflect":
        # The two outermost rows of the upsampled map are equal, so that its reflection is a copy of the map's edge.
        x, side = replicated(x, ((1, 1), (1, 1))), 3
    b, h, w, i = x.shape
    o = kernel.shape[-1]
    spec = ConvSpec(
        jax.ShapeDtypeStruct((b, 2 * h - 2 * side + 2, 2 * w - 2 * side + 2, o), x.dtype),
        jax.ShapeDtypeStruct((4, 4, o, i), x.dtype),
        strides=(2, 2),
        padding=((side, side), (side, side)),
        precision=precision,
    )

    def input_gradient(kernel: Array, d_out: Array) -> Array:
        return xla_convolution(spec, d_out, _strided_kernel(spec, kernel))

    def kernel_gradient(x: Array, d_out: Array) -> Array:
        d_kernel = xla_kernel_gradient(spec, d_out, x)
        return transposed_kernel_gradient(_turned(d_kernel)).astype(kernel_dtype)

    kernel_dtype = kernel.dtype
    return bilinear(partial(forward, spec), input_gradient, kernel_gradient)(x, kernel)


def _turned(kernel: Array) -> Array:
    """Returns a kernel turned by 180 degrees, with its channels exchanged."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _strided_kernel(spec: ConvSpec, kernel: Float[Array, "3 3 i o"]) -> Float[Array, "4 4 o i"]:
    return _turned(transposed_kernel(kernel)).astype(spec.kernel.dtype)


def _by_input_gradient(
    spec: ConvSpec, x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "b h2 w2 o"]:
    """Returns the transposed convolution as XLA maps it onto a library's gradient of the strided one.

    On an H200 with 512 channels and a batch of 32, cuDNN's takes 1.58 ms from 64 x 64 to 128 x 128, where repeating the
    pixels and convolving takes 3.65, and four 2x2 convolutions 2.33.
    """
    # XLA recognises the gradient by a kernel that is reversed, which it would otherwise fold into the sums.
    return xla_input_gradient(spec, lax.optimization_barrier(_strided_kernel(spec, kernel)), x)


# Compiled for v5e, in thousands of estimated cycles, 512 channels from 64 x 64 to 128 x 128 between two convolutions.
# Batch 8: as written 12,482, in place 8,546, spread and added 8,584 with three times the traffic; batch 1: 2,881, 3,860
# and 2,616.  The compiler keeps eight images beside each other, and then writes whole runs of channels in place.
# For v6e at the default effort, batch 8: as written 4,326, in place 2,262 (with gradients 12,297 and 6,896), and 0.34
# instead of 0.59 GB outside of VMEM.
BATCH_IN_PLACE = 8


def _by_corners(
    spec: ConvSpec, x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "b h2 w2 o"]:
    """Returns the transposed convolution as four convolutions, each of which computes one pixel of each square.

    XLA for TPUs multiplies the zeros between the inputs of a transposed convolution, which takes 1.8 times as long as
    convolving the upsampled map.
    """
    beyond = spec.padding[0][0] // 2
    corners = transposed_kernel(kernel).astype(x.dtype)

    def pixels(row: int, column: int) -> Array:
        padding = [(1 - first - beyond, first - beyond) for first in (row, column)]
        corner = corners[row::2, column::2]
        return lax.conv_general_dilated(x, corner, (1, 1), padding, dimension_numbers=LAYOUT, precision=spec.precision)

    join = _in_place if len(x) % BATCH_IN_PLACE == 0 else _spread_and_added
    # Without the barrier, what follows is computed in the layout of squares, and copied out of it.
    return lax.optimization_barrier(join({at: pixels(*at) for at in ((0, 0), (0, 1), (1, 0), (1, 1))}))


def _in_place(pixels: dict[tuple[int, int], Array]) -> Array:
    b, h, w, c = pixels[0, 0].shape
    out, *_ = vary_together(lax.empty((b, h, 2, w, 2, c), pixels[0, 0].dtype), *pixels.values())
    for (row, column), corner in pixels.items():
        out = lax.dynamic_update_slice(out, corner.reshape(b, h, 1, w, 1, c), (0, 0, row, 0, column, 0))
    return out.reshape(b, 2 * h, 2 * w, c)


def _spread_and_added(pixels: dict[tuple[int, int], Array]) -> Array:
    zero = jnp.zeros((), pixels[0, 0].dtype)
    spread = [
        lax.pad(corner, zero, ((0, 0, 0), (row, 1 - row, 1), (column, 1 - column, 1), (0, 0, 0)))
        for (row, column), corner in pixels.items()
    ]
    return spread[0] + spread[1] + spread[2] + spread[3]


# The ways of platforms, from those that measurements or the compiler show to be fastest.  Others compute as written.
WAYS = {
    "cpu": convolve_corners,
    "cuda": partial(_convolve_transposed, _by_input_gradient),
    "tpu": partial(_convolve_transposed, _by_corners),
}
