"""Maps whose squares of 2x2 pixels were computed apart, put together."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float


def from_corners(corners: Sequence[Float[Array, "b h w c"]]) -> Float[Array, "b 2*h 2*w c"]:
    """Returns the map whose pixels the four are: top left, top right, bottom left, bottom right of each square.

    Pixels beside each other are put together first and then those below, so that runs of channels are copied whole; a
    single transpose takes a CPU three times as long.
    """
    b, h, w, c = corners[0].shape
    rows = [jnp.stack(corners[first : first + 2], axis=3).reshape(b, h, 2 * w, c) for first in (0, 2)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, c)
