"""Images of any size as models take them: multiples of the factor, float32 in [-1, 1]; and back to 8 bits."""

import numpy as np
from jaxtyping import Float, Shaped, UInt8


def padded_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """Height and width, each rounded up to a multiple of the model's factor (`AutoEncoderParams.factor`)."""
    return -(-height // factor) * factor, -(-width // factor) * factor


def pad_to_factor(images: Shaped[np.ndarray, "... h w c"], factor: int) -> Shaped[np.ndarray, "... H W c"]:
    """Pads below and on the right, up to multiples of the factor, by repeating the last row and column.

    Repeating suits an image of any size.  A reflection needs as many pixels as it adds, which an image smaller than the
    factor does not have, and a border of one value would be an edge that is not in the image.  The top left corner
    stays where it is: `[..., :h, :w, :]` of what comes back is the image again.

    Args:
      images: Images in any dtype and range.
      factor: Pixels per latent row and column, `AutoEncoderParams.factor`.
    """
    height, width = images.shape[-3:-1]
    rows, columns = padded_size(height, width, factor)
    before = [(0, 0)] * (images.ndim - 3)
    return np.pad(images, (*before, (0, rows - height), (0, columns - width), (0, 0)), mode="edge")


def to_float(images: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """8-bit images as float32 in [-1, 1]."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_uint8(images: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Images in [-1, 1], clipped and rounded to 8 bits: the inverse of `to_float`."""
    return np.round((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
