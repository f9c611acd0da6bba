"""Padding of a map by pixels of its own."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_vae.ops.conv_method import PixelPadding


def reflected(x: Float[Array, "b h w c"], padding: PixelPadding) -> Float[Array, "b h2 w2 c"]:
    """Pads a map by reflection: the pixel outside an edge equals the pixel inside, beside that of the edge.

    Args:
      x: Map.
      padding: Pixels before and after, of h and of w; each 0 or 1.

    Raises:
      ValueError: If more than one pixel is asked for, or the map has a single row or column.
    """
    return _with_edges(x, padding, 1)


def replicated(x: Float[Array, "b h w c"], padding: PixelPadding) -> Float[Array, "b h2 w2 c"]:
    """Pads a map by repeating its edges.

    Args:
      x: Map.
      padding: Pixels before and after, of h and of w; each 0 or 1.

    Raises:
      ValueError: If more than one pixel is asked for.
    """
    return _with_edges(x, padding, 0)


def _with_edges(x: Array, padding: PixelPadding, distance: int) -> Array:
    for axis, (before, after) in enumerate(padding, start=1):
        size = x.shape[axis]
        if not {before, after} <= {0, 1} or (before or after) and size <= distance:
            raise ValueError(
                f"padding={padding} of a map of shape {x.shape}; expected at most one pixel on each side, and at least "
                f"{distance + 1} rows and columns"
            )
        take = [slice(None)] * axis  # slices, because a device that holds some of the rows exchanges only those
        first, last = x[(*take, slice(distance, distance + 1))], x[(*take, slice(size - 1 - distance, size - distance))]
        x = jnp.concatenate([first] * before + [x] + [last] * after, axis)
    return x
