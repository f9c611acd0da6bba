"""Converts images of any size to the input of models: resized, float32 in [-1, 1], padded; and back to 8 bits."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

Crop = Literal["center", "none"]


def padded_size(height: int, width: int, factor: int) -> tuple[int, int]:
    """Returns height and width, rounded up to multiples of the model's factor (`AutoEncoderParams.factor`).

    Args:
      height: Height of the image in pixels.
      width: Width of the image in pixels.
      factor: Number of pixels per latent row and column.

    Examples:
      >>> padded_size(30, 41, 8)
      (32, 48)
    """
    return -(-height // factor) * factor, -(-width // factor) * factor


def pad_to_factor(images: Shaped[np.ndarray, "... h w c"], factor: int) -> Shaped[np.ndarray, "... H W c"]:
    """Pads images at the bottom and on the right to multiples of the factor, by repeating the last row and column.

    Repetition works for images of any size.  Reflection needs as many pixels as it adds, and a constant border would
    add an edge.  `[..., :h, :w, :]` of the result is the image.

    Args:
      images: Images in any dtype and range.
      factor: Number of pixels per latent row and column, `AutoEncoderParams.factor`.

    Returns:
      Padded images, in the dtype of the argument.

    Examples:
      >>> pad_to_factor(np.zeros((1, 30, 41, 3)), 8).shape
      (1, 32, 48, 3)
    """
    height, width = images.shape[-3:-1]
    rows, columns = padded_size(height, width, factor)
    before = [(0, 0)] * (images.ndim - 3)
    return np.pad(images, (*before, (0, rows - height), (0, columns - width), (0, 0)), mode="edge")


def resized_size(height: int, width: int, side: int, crop: Crop = "center") -> tuple[int, int]:
    """Returns height and width of `resize_image` without computing it."""
    if crop == "center":
        return side, side
    height, width = _halved(height, width, side)
    return _scaled(height, width, side)


def resize_image(image: UInt8[np.ndarray, "h w 3"], side: int, crop: Crop = "center") -> UInt8[np.ndarray, "H W 3"]:
    """Resizes the shorter side of an image, and crops the square in its centre, as ADM does.

    Halves the image by boxes as long as its shorter side has at least twice as many pixels as wanted, then resizes it
    with a bicubic filter, up or down.  Models of ImageNet latents (ADM, DiT, SiT, MeanFlow) are trained on such crops.

    Args:
      image: 8-bit RGB.
      side: Length of the shorter side in pixels.
      crop: `"center"` for the square of `side` pixels in the centre, or `"none"`.

    Returns:
      8-bit RGB, a square of `side` pixels if it is cropped.

    Examples:
      >>> resize_image(np.zeros((100, 150, 3), np.uint8), 64).shape
      (64, 64, 3)

    Source: openai/guided-diffusion `image_datasets.py::center_crop_arr`; equal to the last bit.
    """
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * side:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    height, width = _scaled(picture.height, picture.width, side)
    resized = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    if crop == "none":
        return resized
    top, left = (height - side) // 2, (width - side) // 2
    return resized[top : top + side, left : left + side]


def _halved(height: int, width: int, side: int) -> tuple[int, int]:
    while min(height, width) >= 2 * side:
        height, width = height // 2, width // 2
    return height, width


def _scaled(height: int, width: int, side: int) -> tuple[int, int]:
    scale = side / min(height, width)
    return round(height * scale), round(width * scale)


def to_float(images: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Converts 8-bit images to float32 in [-1, 1].

    Args:
      images: 8-bit images of any shape.

    Returns:
      Images in [-1, 1], of equal shape.

    Examples:
      >>> to_float(np.array([0, 255], np.uint8))
      array([-1.,  1.], dtype=float32)
    """
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_uint8(images: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Converts images in [-1, 1] to 8 bits, clipped and rounded; the inverse of `to_float`.

    Args:
      images: Images of any shape.

    Returns:
      8-bit images, of equal shape.

    Examples:
      >>> to_uint8(np.array([-1.0, 0.5, 1.0, 2.0]))
      array([  0, 191, 255, 255], dtype=uint8)
    """
    return np.round((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
