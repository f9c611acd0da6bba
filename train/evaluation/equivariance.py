"""Measures how well the decoder follows latents that are reduced and turned."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from flax_vae.autoencoder import Model
from flax_vae.conditioning import same_time
from flax_vae.convert.architecture import Architecture
from flax_vae.convert.errors import ArgumentError
from flax_vae.images import ImageSource, to_float
from flax_vae.train.config import SCALES, reduced_size
from flax_vae.train.losses import QUARTERS, transform_pair

_PEAK = 2.0  # range of pixels in [-1, 1]
_LARGEST = 256  # side of squares in pixels: twelve times as many are decoded


def equivariance_psnr(
    model: Model,
    params: Any,
    images: UInt8[np.ndarray, "b h w 3"],
    time: float | None = None,
    *,
    scales: Sequence[float] = SCALES,
    turns: Sequence[int] = range(QUARTERS),
) -> Float[np.ndarray, " b"]:
    """Returns the equivariance error of each image in decibels; more is better.

    It is the PSNR of the decoded transformed latents against the transformed image, averaged over all pairs of a scale
    and a number of turns.  The latents are the mode of the posterior; reconstructions are clipped to [-1, 1].

    One program of the encoder is compiled for each size of images, and one of the decoder for each scale; two for
    images that are not square, if they are turned.

    Args:
      model: Autoencoder.
      params: Parameters of the model.
      images: 8-bit RGB images of one size.  Rows and columns beyond a multiple of the model's factor are left out.
      time: Time of all images, for models that are conditioned on a time.
      scales: Scales in (0, 1]; 1 with no turns gives the PSNR of the reconstruction.
      turns: Numbers of quarter turns counter-clockwise.

    Raises:
      ValueError: If an image is smaller than the model's factor, there are no transformations, or a scale is out of
        range.
      UserError: If the time is missing, or the model takes none.

    Source: Kouzelis et al. 2025 (arXiv:2502.09509), section 3, for the transformations.
    """
    factor = model.params.factor
    height, width = (length // factor * factor for length in images.shape[1:3])
    if not height or not width:
        raise ArgumentError(f"images of {images.shape[1:3]} pixels are smaller than {factor} x {factor}, one latent")
    if not scales or not turns or not all(0 < scale <= 1 for scale in scales):
        raise ArgumentError(f"scales={scales} must lie between 0 and 1, and turns={turns} must not be empty")
    x, condition = jnp.asarray(to_float(images[:, :height, :width])), same_time(len(images), time, model.params)
    z = _encode(model, params, x, condition)
    decibels = []
    for scale in scales:
        rows, columns = (reduced_size(length, scale, model.params) for length in z.shape[1:3])
        for number in turns:
            target, latents = transform_pair(x, z, (rows, columns), number)
            output = np.asarray(_decode(model, params, latents, condition), np.float64)
            error = np.mean((output.clip(-1, 1) - np.asarray(target, np.float64)) ** 2, axis=(1, 2, 3))
            with np.errstate(divide="ignore"):
                decibels.append(10 * np.log10(_PEAK**2 / error))
    return np.mean(decibels, axis=0)


def central_equivariance(
    model: Model, params: Any, source: ImageSource, indices: Sequence[int], side: int, time: float | None = None
) -> list[float]:
    """Returns the equivariance error of the square in the centre of each of some images; see `equivariance_psnr`.

    All squares have one size, so four programs are compiled, however many sizes the images have.

    Args:
      model: Autoencoder.
      params: Parameters of the model.
      source: Images.
      indices: Numbers of the images.
      side: Side of the squares in pixels; see `equivariance_side`.
      time: Time of all images, for models that are conditioned on a time.

    Raises:
      DataError: If an image cannot be read.
    """
    found = []
    for index in indices:
        image = source[index]
        top, left = ((length - side) // 2 for length in image.shape[:2])
        square = image[None, top : top + side, left : left + side]
        found.append(float(equivariance_psnr(model, params, square, time)[0]))
    return found


def equivariance_side(params: Architecture, sizes: Iterable[tuple[int, int]]) -> int | None:
    """Returns the largest side of squares in all images of some sizes, at most 256 pixels, or None if one is too small.

    Args:
      params: Architecture, of whose factor the side is a multiple.
      sizes: Heights and widths of the images.
    """
    side = min(min(_LARGEST, *size) for size in sizes) // params.factor * params.factor
    # The smallest scale needs a latent that the decoder takes.
    return side if side >= params.least_image / min(SCALES) else None


@jax.jit(static_argnums=0)
def _encode(model: Model, params: Any, images: Array, time: Array | None) -> Array:
    """Returns the raw latents, whose channels are the same after a turn; those of patches are not."""
    z = model.apply({"params": params}, images, time, sample=False, method="encode")
    return model.apply({"params": params}, z, method="unscale")  # pyright: ignore[reportReturnType]


@jax.jit(static_argnums=0)
def _decode(model: Model, params: Any, latents: Array, time: Array | None) -> Array:
    z = model.apply({"params": params}, latents, method="scale")
    return model.apply({"params": params}, z, time, method="decode")  # pyright: ignore[reportReturnType]
