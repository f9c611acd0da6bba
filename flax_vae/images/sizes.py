"""Converts images of any size to the input of models, float32 in [-1, 1] padded to the factor, and back to 8 bits."""

import numpy as np
from jaxtyping import Float, Shaped, UInt8


def padded_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """Returns height and width, rounded up to multiples of the model's factor (`AutoEncoderParams.factor`)."""
    return -(-height // factor) * factor, -(-width // factor) * factor


def pad_to_factor(images: Shaped[np.ndarray, "... h w c"], factor: int) -> Shaped[np.ndarray, "... H W c"]:
    """Pads images at the bottom and on the right to multiples of the factor, by repeating the last row and column.

    Repetition works for images of any size.  Reflection needs as many pixels as it adds, and a constant border would
    add an edge.  `[..., :h, :w, :]` of the result is the image.

    Args:
      images: Images in any dtype and range.
      factor: Number of pixels per latent row and column, `AutoEncoderParams.factor`.
    """
    height, width = images.shape[-3:-1]
    rows, columns = padded_size(height, width, factor)
    before = [(0, 0)] * (images.ndim - 3)
    return np.pad(images, (*before, (0, rows - height), (0, columns - width), (0, 0)), mode="edge")


def to_float(images: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Converts 8-bit images to float32 in [-1, 1]."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_uint8(images: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Converts images in [-1, 1] to 8 bits, clipped and rounded; the inverse of `to_float`."""
    return np.round((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
