"""Evaluates a model on images: reconstructs each of them whole, from the mode of its posterior, and measures it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from flax_vae.autoencoder import Model
from flax_vae.convert.console import printable
from flax_vae.images import (
    Comparison,
    ImageScores,
    ImageSource,
    compare_images,
    padded_size,
    to_float,
    to_uint8,
)
from flax_vae.inference import Reconstruction, needs_bands, reconstruct
from flax_vae.train.errors import DataError, NotFiniteError
from flax_vae.train.evaluation.fid import FrechetMeter
from flax_vae.train.evaluation.statistics import PosteriorStats, PosteriorSummary
from flax_vae.train.losses import lpips, smallest_side, stages_of

_HELD_BYTES = 1 << 30  # images that wait for others of their size


@dataclass(frozen=True)
class Report:
    """Result of an evaluation.

    Attributes:
      images: Scores of each image, in the order of the source.
      latents: Statistics of the latents; those of images that were padded include their padding.
      rfid: Fréchet distance between the features of the reconstructions and of the originals; None if it was not
        asked for or there is only one image.
    """

    images: list[ImageScores]
    latents: PosteriorSummary
    rfid: float | None

    def mean(self) -> dict[str, float | None]:
        """Returns the mean of each score over the images that have it, or None; PSNR is averaged in decibels."""
        scores = {name: [getattr(image, name) for image in self.images] for name in ("psnr", "ssim", "lpips")}
        known = {name: [value for value in values if value is not None] for name, values in scores.items()}
        return {name: sum(values) / len(values) if values else None for name, values in known.items()}


class PerceptualDistance(NamedTuple):
    """A perceptual distance.

    Attributes:
      distance: Function of two batches of images in [-1, 1] that returns one number per pair.
      smallest_side: Smallest height and width of the images, in pixels.
    """

    distance: Callable[[Float[np.ndarray, "b h w 3"], Float[np.ndarray, "b h w 3"]], Float[Array, " b"]]
    smallest_side: int


def perceptual_distance(weights: dict[str, Any], net: Literal["vgg", "alex"]) -> PerceptualDistance:
    """Returns LPIPS, compiled for each size of images.

    Args:
      weights: Weights on a device; see `flax_vae.train.losses.load_lpips_weights`.
      net: Network that the weights belong to.
    """
    return PerceptualDistance(partial(jax.jit(partial(lpips, net=net)), weights), smallest_side(stages_of(net)))


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of one model.

    Attributes:
      model: Autoencoder.
      params: Parameters of the autoencoder.
      batch_size: Number of images that are reconstructed together, if there are enough of one size.
      time: Time for a model that is conditioned on one.
      in_bands: Whether to decode in bounded memory, which is slower; see `flax_vae.decode_in_bands`.  None decides for
        each image by its size.
      perceptual: Distance for LPIPS; None measures no LPIPS.
      frechet: Meter for rFID; None measures no rFID.
    """

    model: Model
    params: Any
    batch_size: int = 1
    time: float = 0.0
    in_bands: bool | None = None
    perceptual: PerceptualDistance | None = None
    frechet: FrechetMeter | None = None

    def __call__(self, source: ImageSource, count: int, look: Callable[[Comparison], None] = lambda _: None) -> Report:
        """Measures the first `count` images.

        Args:
          source: Source of the images.
          count: Number of images.
          look: Function that is called with each image and its reconstruction; these are not kept.

        Raises:
          DataError: If the source is empty, or an image cannot be read.
          NotFiniteError: If a reconstruction holds NaN or infinite values.
          TrainError: If the feature extractor is faulty, or the latents are all equal or not finite.
        """
        if not min(count, len(source)):
            raise DataError(f"{source.where} holds no image; an evaluation needs at least one")
        compiled: dict[tuple[int, int], set[int]] = {}
        scores: dict[int, ImageScores] = {}
        latents = PosteriorStats(self.model.params.z_channels)
        for indices, originals in _by_size(source, min(count, len(source)), self.batch_size):
            # An incomplete batch is filled up if a larger program has been compiled already.
            height, width = originals.shape[1:3]
            sizes = compiled.setdefault(padded_size(height, width, self.model.params.factor), set())
            size = min((size for size in sizes if size >= len(originals)), default=len(originals))
            sizes.add(size)
            comparisons, made = self.compare(source, indices, originals, size)
            latents.add(made.mean, made.logvar)
            if self.frechet is not None:
                self.frechet.add(originals, np.stack([comparison.reconstruction for comparison in comparisons]))
            for index, comparison in zip(indices, comparisons, strict=True):
                scores[index] = comparison.scores
                look(comparison)
        rfid = None if self.frechet is None else self.frechet.distance()
        return Report([scores[index] for index in sorted(scores)], latents.result(), rfid)

    def compare(
        self,
        source: ImageSource,
        indices: Sequence[int],
        originals: UInt8[np.ndarray, "b h w 3"],
        size: int | None = None,
    ) -> tuple[list[Comparison], Reconstruction]:
        """Reconstructs images of one size and compares them with the originals in 8 bits.

        Images are padded to multiples of the model's factor by repeating their last row and column, and the
        reconstructions are cropped.  Each padded size is compiled once.

        Args:
          source: Source of the images, for their names.
          indices: Number of each image in the source.
          originals: Images.
          size: Number of images to compile for, at least `b`; None means `b`.

        Returns:
          Comparison of each image, and the reconstructions with their posteriors.

        Raises:
          NotFiniteError: If a reconstruction holds NaN or infinite values.
        """
        count, (height, width) = len(originals), originals.shape[1:3]
        filled = np.pad(originals, ((0, (size or count) - count), (0, 0), (0, 0), (0, 0)), mode="edge")
        time = None if self.model.params.time_emb_dim is None else self.time
        in_bands = needs_bands(self.model.params, height, width) if self.in_bands is None else self.in_bands
        made = reconstruct(self.model, self.params, filled, time, in_bands=in_bands)
        made = jax.tree.map(lambda part: part[:count], made)
        for index, image in zip(indices, made.images, strict=True):
            if not np.isfinite(image).all():
                raise NotFiniteError(
                    f"the reconstruction of {source.printable_name(index)} holds NaN or infinite values; expected "
                    "finite ones: use other weights"
                )
        reconstructions = to_uint8(made.images)
        distances = self._distances(originals, reconstructions)
        names = [printable(source.name(index)) for index in indices]
        return list(map(compare_images, names, originals, reconstructions, distances)), made

    def _distances(
        self, originals: UInt8[np.ndarray, "b h w 3"], reconstructions: UInt8[np.ndarray, "b h w 3"]
    ) -> list[float | None]:
        if self.perceptual is None or min(originals.shape[1:3]) < self.perceptual.smallest_side:
            return [None] * len(originals)
        # In 8 bits, as PSNR and SSIM: others measure this number from PNG files.
        distances = self.perceptual.distance(to_float(reconstructions), to_float(originals))
        return np.asarray(distances, np.float64).tolist()


def _by_size(
    source: ImageSource, count: int, batch_size: int
) -> Iterator[tuple[list[int], UInt8[np.ndarray, "b h w 3"]]]:
    """Yields batches of images of one size, with their numbers, in the order in which batches become full."""
    waiting: dict[tuple[int, ...], list[int]] = {}
    images: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
    held = 0
    for index in range(count):
        images[index] = image = source[index]
        waiting.setdefault(image.shape, []).append(index)
        held += image.nbytes
        shape = image.shape
        if len(waiting[shape]) < batch_size:
            if held <= _HELD_BYTES:
                continue
            shape = max(waiting, key=lambda shape: math.prod(shape) * len(waiting[shape]))
        indices = waiting.pop(shape)
        held -= math.prod(shape) * len(indices)
        yield indices, np.stack([images.pop(index) for index in indices])
    for indices in waiting.values():
        yield indices, np.stack([images.pop(index) for index in indices])
