"""Nearest-neighbour upsampling with the convolution that follows it."""

from functools import partial
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from flax_vae.ops.broadcasting import broadcast
from flax_vae.ops.convolution import convolve
from flax_vae.ops.cpu.folded_upsampling import convolve_corners


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
      kernel: Kernel of the upsampled map.
      window_strides: Strides of the convolution; always 1.
      padding: Padding of the convolution; always one pixel on every side.
      padding_mode: With what the upsampled map is padded.
      options: Options of `convolve`.

    Raises:
      ValueError: If strides or padding are others.
    """
    if (*window_strides, *padding) != (1, 1, (1, 1), (1, 1)):
        raise ValueError(f"window_strides={window_strides}, padding={padding}; expected (1, 1), ((1, 1), (1, 1))")

    def as_written(x: Array, kernel: Array) -> Array:
        return convolve(_doubled(x), kernel, window_strides, padding, padding_mode=padding_mode, **options)

    if x.dtype.itemsize < 4:  # summing weights rounds once more, which half precision would show
        return as_written(x, kernel)
    return jax.lax.platform_dependent(
        x, kernel, cpu=partial(convolve_corners, padding_mode=padding_mode, **options), default=as_written
    )


def _doubled(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    b, h, w, c = x.shape
    return broadcast(x.reshape(b, h, 1, w, 1, c), (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
