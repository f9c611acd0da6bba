"""Cuts one random crop from a photograph: position, size, flip and order of the colour channels."""

import itertools
import math

import numpy as np
from jaxtyping import UInt8, UInt32
from PIL import Image

from flax_vae.train.config import DataConfig

WORDS = 6  # random 32-bit words per example: photograph, top, left, flip, channels, scale
_ORDERS = list(itertools.permutations(range(3)))


def fitted_size(height: int, width: int, resize: int | None) -> tuple[int, int]:
    """Returns height and width after `resize_shorter_side`; the proportions stay."""
    if resize is None:
        return height, width
    shorter = min(height, width)
    # Integers, rounded half up: equal on every machine.
    return (2 * height * resize + shorter) // (2 * shorter), (2 * width * resize + shorter) // (2 * shorter)


def resize_shorter_side(image: UInt8[np.ndarray, "h w 3"], resize: int | None) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Returns the photograph, resized until its shorter side has `resize` pixels; None leaves it unchanged."""
    height, width = fitted_size(image.shape[0], image.shape[1], resize)
    return _resized(image, height, width)


def cut(
    image: UInt8[np.ndarray, "h w 3"], words: UInt32[np.ndarray, "6"], config: DataConfig
) -> UInt8[np.ndarray, "s s 3"]:
    """Returns the crop that random words choose.

    Args:
      image: Photograph with both sides at least `config.crop_size`.
      words: Random words, see `WORDS`.
      config: Size of the crop, range of scales, flip and order of the channels.
    """
    size = config.crop_size
    window = min(_window(words[5], size, config.min_scale), *image.shape[:2])
    top = uniform_below(image.shape[0] - window + 1, words[1])
    left = uniform_below(image.shape[1] - window + 1, words[2])
    crop = _resized(image[top : top + window, left : left + window], size, size)
    crop = crop[:, ::-1] if config.flip and words[3] & 1 else crop
    return crop[..., _ORDERS[uniform_below(len(_ORDERS), words[4])]] if config.shuffle_channels else crop


def uniform_below(bound: int, word: np.uint32) -> int:
    """Maps a 32-bit word uniformly to an integer from 0 to bound - 1."""
    return int(word) * bound >> 32


def _window(word: np.uint32, size: int, min_scale: float) -> int:
    """Returns the side of the window that is reduced to a crop.

    The ratio of the crop's area to that of the window is uniform in [min_scale, 1].
    """
    share = min_scale + (1.0 - min_scale) * (int(word) / 2**32)
    return round(size / math.sqrt(share))


def _resized(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    if image.shape[:2] == (height, width):
        return image
    # Pillow widens the filter with the reduction, which prevents aliasing.
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
