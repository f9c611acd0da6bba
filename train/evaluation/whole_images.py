"""How good a model is on a data set: every image whole, reconstructed from its posterior's mode, and measured.

The look that training takes at held-out images is `flax_vae.train.evaluation.tiles`; this is the thorough one, for a
finished model.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, UInt8

from flax_vae import AutoEncoder
from flax_vae.convert.console import printable
from flax_vae.images import Comparison, ImageScores, ImageSource, compare_images, to_float, to_uint8
from flax_vae.inference import reconstruct
from flax_vae.train.errors import DataError, NotFiniteError
from flax_vae.train.evaluation.fid import FrechetMeter
from flax_vae.train.evaluation.statistics import PosteriorStats, PosteriorSummary

_HELD_BYTES = 1 << 30  # images that wait for others of their size


@dataclass(frozen=True)
class Report:
    """A model on a data set.

    Attributes:
      images: in the order of the source.
      latents: see there; of images that were padded, with their padding.
      rfid: Fréchet distance of the reconstructions' features to the originals', None where it was not asked for or
        there is only one image.
    """

    images: list[ImageScores]
    latents: PosteriorSummary
    rfid: float | None

    def mean(self) -> dict[str, float | None]:
        """Of each score over the images that have it (of PSNR: of the decibels), None where none has."""
        scores = {name: [getattr(image, name) for image in self.images] for name in ("psnr", "ssim", "lpips")}
        known = {name: [value for value in values if value is not None] for name, values in scores.items()}
        return {name: sum(values) / len(values) if values else None for name, values in known.items()}


class PerceptualDistance(NamedTuple):
    """A perceptual distance.

    Attributes:
      distance: of two batches of images in [-1, 1], one number per pair.
      smallest_side: the least height and width that it takes, in pixels.
    """

    distance: Callable[[Float[np.ndarray, "b h w 3"], Float[np.ndarray, "b h w 3"]], Float[Array, " b"]]
    smallest_side: int


@dataclass(frozen=True)
class Evaluation:
    """What to measure, and how.

    Attributes:
      model: the autoencoder.
      params: its parameters.
      batch_size: images that go through the model at a time, where there are so many of one size.
      time: the condition of a model that takes one.
      in_bands: decode in bounded memory, slower; see `flax_vae.decode_in_bands`.
      perceptual: what LPIPS is measured by, or None.
      frechet: what rFID is measured by, or None.
    """

    model: AutoEncoder
    params: Any
    batch_size: int = 1
    time: float = 0.0
    in_bands: bool = False
    perceptual: PerceptualDistance | None = None
    frechet: FrechetMeter | None = None

    def __call__(self, source: ImageSource, count: int, look: Callable[[Comparison], None] = lambda _: None) -> Report:
        """Measures the first `count` images.

        Images are padded to multiples of the model's factor by repeating their last row and column, and cropped again.
        A program is compiled for every size that there is.

        Args:
          source: of the images.
          count: how many of them.
          look: is shown every image; of the memory that they take nothing is kept here.

        Raises:
          DataError: if there is no image, or one cannot be read.
          NotFiniteError: If a reconstruction holds NaN or infinite values.
          TrainError: if the feature extractor misbehaves; if the latents are all equal, or not finite.
        """
        if not min(count, len(source)):
            raise DataError(f"{source.where} holds no image; an evaluation needs at least one")
        time = None if self.model.params.time_emb_dim is None else self.time
        compiled: dict[tuple[int, ...], set[int]] = {}
        scores: dict[int, ImageScores] = {}
        latents = PosteriorStats(self.model.params.z_channels)
        for indices, originals in _by_size(source, min(count, len(source)), self.batch_size):
            # An incomplete batch is filled up rather than compiled for, where a larger program is there already.
            sizes = compiled.setdefault(originals.shape[1:], set())
            size = min((size for size in sizes if size >= len(originals)), default=len(originals))
            sizes.add(size)
            filled = np.pad(originals, ((0, size - len(originals)), (0, 0), (0, 0), (0, 0)), mode="edge")
            made = reconstruct(self.model, self.params, filled, time, in_bands=self.in_bands)
            images, mean, logvar = (part[: len(originals)] for part in made)
            latents.add(mean, logvar)
            wrong = [source.label(index) for index, image in zip(indices, images, strict=True) if not _finite(image)]
            if wrong:
                raise NotFiniteError(
                    f"the reconstruction of {wrong[0]} holds NaN or infinite values; expected finite "
                    "ones: use other weights"
                )
            reconstructions = to_uint8(images)
            if self.frechet is not None:
                self.frechet.add(originals, reconstructions)
            distances = self._distances(originals, reconstructions)
            for index, original, other, distance in zip(indices, originals, reconstructions, distances, strict=True):
                comparison = compare_images(printable(source.name(index)), original, other, distance)
                scores[index] = comparison.scores
                look(comparison)
        rfid = None if self.frechet is None else self.frechet.distance()
        return Report([scores[index] for index in sorted(scores)], latents.result(), rfid)

    def _distances(
        self, originals: UInt8[np.ndarray, "b h w 3"], reconstructions: UInt8[np.ndarray, "b h w 3"]
    ) -> list[float | None]:
        if self.perceptual is None or min(originals.shape[1:3]) < self.perceptual.smallest_side:
            return [None] * len(originals)
        # Of what a viewer sees, as PSNR and SSIM; so it is also the number that others would measure from PNG files.
        distances = self.perceptual.distance(to_float(reconstructions), to_float(originals))
        return np.asarray(distances, np.float64).tolist()


def _finite(image: Float[np.ndarray, "h w 3"]) -> bool:
    return bool(np.isfinite(image).all())


def _by_size(
    source: ImageSource, count: int, batch_size: int
) -> Iterator[tuple[list[int], UInt8[np.ndarray, "b h w 3"]]]:
    """Batches of images of one size, with their numbers; in the order in which batches become full."""
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
