"""One crop of one photograph, from random words: where, how large, flipped, and with which colours."""

import itertools
import math

import numpy as np
from jaxtyping import UInt8, UInt32
from PIL import Image

from flax_vae.train.config import DataConfig

WORDS = 6  # that one example takes: photograph, top, left, flip, channels, scale
_ORDERS = list(itertools.permutations(range(3)))


def fitted_size(height: int, width: int, resize: int | None) -> tuple[int, int]:
    """Height and width after `resize_shorter_side`: the shorter side is `resize`, the proportions stay."""
    if resize is None:
        return height, width
    shorter = min(height, width)
    # In whole numbers, rounded half up: the same on every machine.
    return (2 * height * resize + shorter) // (2 * shorter), (2 * width * resize + shorter) // (2 * shorter)


def resize_shorter_side(image: UInt8[np.ndarray, "h w 3"], resize: int | None) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The whole photograph, resized until its shorter side has `resize` pixels; None leaves it as it is."""
    height, width = fitted_size(image.shape[0], image.shape[1], resize)
    return _resized(image, height, width)


def cut(
    image: UInt8[np.ndarray, "h w 3"], words: UInt32[np.ndarray, "6"], config: DataConfig
) -> UInt8[np.ndarray, "s s 3"]:
    """The crop that the words choose, from a photograph of at least `crop_size` in both directions."""
    size = config.crop_size
    window = min(_window(words[5], size, config.min_scale), *image.shape[:2])
    top = uniform_below(image.shape[0] - window + 1, words[1])
    left = uniform_below(image.shape[1] - window + 1, words[2])
    crop = _resized(image[top : top + window, left : left + window], size, size)
    crop = crop[:, ::-1] if config.flip and words[3] & 1 else crop
    return crop[..., _ORDERS[uniform_below(len(_ORDERS), words[4])]] if config.shuffle_channels else crop


def uniform_below(bound: int, word: np.uint32) -> int:
    """A 32-bit word spread evenly over 0 .. bound - 1."""
    return int(word) * bound >> 32


def _window(word: np.uint32, size: int, min_scale: float) -> int:
    """Side of the window that is shrunk to a crop: the crop's share of its area is even over min_scale .. 1."""
    share = min_scale + (1.0 - min_scale) * (int(word) / 2**32)
    return round(size / math.sqrt(share))


def _resized(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    if image.shape[:2] == (height, width):
        return image
    # Pillow's filter grows with the reduction, so that fine patterns blur instead of turning into coarse ones.
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
