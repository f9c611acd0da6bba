"""Sizes of the latents that the equivariance regulariser reduces; each is a shape, and so a program of its own."""

from flax_vae.convert.architecture import Architecture

SCALES = (0.25, 0.5, 0.75)  # of the sides


def reduced_size(length: int, scale: float, params: Architecture) -> int:
    """Returns the rows, or columns, of reduced latents: as many as the decoder takes, next to `scale` times `length`.

    Args:
      length: Rows or columns of the raw latents, which are not gathered into patches.
      scale: Scale of the sides, at most 1.
      params: Architecture.
    """
    least = -(-params.least_side // params.patch)
    return params.patch * max(least, int(scale * length / params.patch + 0.5))
