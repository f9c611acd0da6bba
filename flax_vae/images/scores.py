"""Scores of reconstructions: PSNR and SSIM of 8-bit images."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from flax_vae.convert.errors import ArgumentError

_PEAK = 255.0
SSIM_WINDOW = 11  # pixels on each side; smaller images have no SSIM
_RADIUS = SSIM_WINDOW // 2
_SIGMA = 1.5  # Wang et al.: the window is Gaussian with this standard deviation, in pixels


class ImageScores(NamedTuple):
    """Scores of a reconstruction.

    Attributes:
      name: Name of the image.
      height: Height in pixels.
      width: Width in pixels.
      psnr: PSNR in decibels; infinite for equal images.
      ssim: SSIM; None for an image smaller than its window.
      lpips: LPIPS; None if it was not computed, or the image is too small for the network.
    """

    name: str
    height: int
    width: int
    psnr: float
    ssim: float | None
    lpips: float | None

    def in_words(self) -> list[str]:
        """Returns the available scores as text, each with its name."""
        words = [f"PSNR {self.psnr:.2f} dB"]
        words += [f"SSIM {self.ssim:.3f}"] if self.ssim is not None else []
        return words + ([f"LPIPS {self.lpips:.4f}"] if self.lpips is not None else [])


class Comparison(NamedTuple):
    """An image, its reconstruction, and the scores.

    Attributes:
      original: 8-bit RGB.
      reconstruction: 8-bit RGB of equal size.
      scores: Scores of the reconstruction.
    """

    original: UInt8[np.ndarray, "h w 3"]
    reconstruction: UInt8[np.ndarray, "h w 3"]
    scores: ImageScores


def compare_images(
    name: str,
    original: UInt8[np.ndarray, "h w 3"],
    reconstruction: UInt8[np.ndarray, "h w 3"],
    lpips: float | None = None,
) -> Comparison:
    """Computes PSNR and, if the image is large enough for its window, SSIM.

    Args:
      name: Name of the image.
      original: 8-bit RGB.
      reconstruction: 8-bit RGB of equal size.
      lpips: LPIPS to store with the other scores, if known.

    Returns:
      Both images with their scores.
    """
    height, width = original.shape[:2]
    structure = ssim(reconstruction, original) if min(height, width) >= SSIM_WINDOW else None
    return Comparison(
        original,
        reconstruction,
        ImageScores(name, height, width, psnr(reconstruction, original), structure, lpips),
    )


def psnr(image: UInt8[np.ndarray, "h w c"], reference: UInt8[np.ndarray, "h w c"]) -> float:
    """Returns the peak signal-to-noise ratio in decibels, `10 log10(255² / MSE)`; infinite for equal images.

    Args:
      image: 8-bit image.
      reference: 8-bit image to compare with, of equal shape.

    Examples:
      >>> image = np.zeros((16, 16, 3), np.uint8)
      >>> print(f"{psnr(image, image + 1):.2f} dB")
      48.13 dB

    Raises:
      ValueError: If the two are not 8-bit images of one shape.
    """
    _check(image, reference)
    error = np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2)
    return math.inf if error == 0 else float(10.0 * np.log10(_PEAK**2 / error))


def ssim(image: UInt8[np.ndarray, "h w c"], reference: UInt8[np.ndarray, "h w c"]) -> float:
    """Returns the structural similarity, at most 1, averaged over all complete windows and channels.

    The original definition: Gaussian weights, K1 = 0.01, K2 = 0.03, population covariance, no padding.

    Args:
      image: 8-bit image, at least 11 pixels on each side.
      reference: 8-bit image to compare with, of equal shape.

    Examples:
      >>> image = np.zeros((16, 16, 3), np.uint8)
      >>> print(f"{ssim(image, image):.3f}")
      1.000

    Raises:
      ValueError: If the two are not 8-bit images of one shape, or smaller than the window of 11 x 11.

    Source: Wang, Bovik, Sheikh & Simoncelli 2004; equals scikit-image's `structural_similarity` with
    `gaussian_weights=True, use_sample_covariance=False`.
    """
    _check(image, reference)
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise ArgumentError(f"images of {image.shape[:2]} pixels are smaller than the window of 11 x 11")
    x, y = image.astype(np.float64), reference.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))))


def _blur(x: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h2 w2 c"]:
    """Returns the Gaussian mean of each complete window, `h - 10` by `w - 10`."""
    weights = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        x = np.lib.stride_tricks.sliding_window_view(x, weights.size, axis=axis) @ weights
    return x


def _check(image: np.ndarray, reference: np.ndarray) -> None:
    if image.shape != reference.shape or image.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ArgumentError(
            f"PSNR and SSIM compare 8-bit images of one shape, not {image.dtype} {image.shape} and "
            f"{reference.dtype} {reference.shape}"
        )
