"""Structural similarity as a loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flax_vae.convert.errors import ArgumentError

WINDOW = 11  # pixels on each side
_SIGMA = 1.5  # standard deviation of its Gaussian weights, in pixels
_PEAK = 2.0  # white, counted from black


def structural_similarity(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Returns the structural similarity of each pair of images, at most 1; 1 minus it is a loss.

    It is that of `flax_vae.images.ssim`, for images in [-1, 1], with gradients.

    Args:
      a: Images in [-1, 1], at least 11 pixels on each side.
      b: Images to compare with, of the shape of `a`.

    Raises:
      ValueError: If the shapes differ, or the images are smaller than the window.

    Source: Wang, Bovik, Sheikh & Simoncelli 2004: Gaussian weights, K1 = 0.01, K2 = 0.03, complete windows only.
    """
    if a.shape != b.shape or min(a.shape[1:3]) < WINDOW:
        raise ArgumentError(
            f"images have shapes {a.shape} and {b.shape}; expected two batches of one shape, of at least {WINDOW} x "
            f"{WINDOW} pixels"
        )
    # The variances are differences of nearly equal numbers, which bfloat16 cannot hold.  The means count from black.
    a, b = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) + 1 for x in (a, b))
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return jnp.mean(likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)), axis=(1, 2, 3))


def _blur(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Returns the Gaussian mean of each complete window."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / _SIGMA) ** 2)
    weights = weights / weights.sum()
    for axis in (1, 2):
        length = x.shape[axis] - WINDOW + 1
        parts = (jax.lax.slice_in_dim(x, k, k + length, axis=axis) for k in range(WINDOW))
        x = sum(float(weight) * part for weight, part in zip(weights, parts, strict=True))  # pyright: ignore[reportAssignmentType]
    return x
