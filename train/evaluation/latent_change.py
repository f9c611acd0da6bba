"""Measures how far the latents of a fine-tuned model have moved from those of the model that it started from."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class LatentChange(NamedTuple):
    """Distance of latents from those of the starting model, which diffusion models were trained on.

    Attributes:
      cosine: Mean over images of the cosine of the angle between the two latents of an image; NaN if those of the
        starting model are not known.
      decibels: Energy of the starting model's latents over that of the differences, over all images; infinite if none
        has moved, NaN if that is not known.
    """

    cosine: float
    decibels: float

    def in_words(self) -> str:
        """Returns the change as a phrase."""
        if math.isnan(self.decibels):
            return "latents not compared with those of the start, which cannot be loaded"
        if math.isinf(self.decibels):
            return "latents equal to those of the start"
        return f"latents against those of the start: cosine {self.cosine:.5f}, {self.decibels:.2f} dB"


class LatentChangeMeter:
    """Compares latents with those of the starting model, in one order of the images.  A sink of posteriors."""

    def __init__(self, start: Iterable[Float[np.ndarray, "b h w z"]] | None):
        """Starts without any images.

        Args:
          start: Means of the posteriors of the starting model, in the order in which those to compare are added; None
            if they are not known, so that the result is NaN in all processes.
        """
        self._start = None if start is None else iter(start)
        # Images, cosines, energy of the start's latents, energy of the differences.
        self._sums = np.full(4, 0.0 if start is not None else np.nan)

    def add(self, mean: Float[np.ndarray, "b h w z"], logvar: Float[np.ndarray, "b h w z"] | None) -> None:
        """Compares the means of the next images with those of the start."""
        if self._start is None:
            return
        before, now = (array.astype(np.float64).reshape(len(mean), -1) for array in (next(self._start), mean))
        products = np.sum(before * now, axis=1)
        lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(now, axis=1)
        cosines = np.divide(products, lengths, out=np.ones_like(products), where=lengths > 0)
        self._sums += [len(mean), np.sum(cosines), np.sum(before**2), np.sum((now - before) ** 2)]

    def result(self, gather: Callable[[np.ndarray], np.ndarray] | None = None) -> LatentChange:
        """Returns the change over all images.

        Args:
          gather: Function that returns the float64 arrays of all processes, stacked; None for one process.
        """
        sums = self._sums if gather is None else gather(self._sums).sum(axis=0)
        images, cosines, energy, difference = sums.tolist()
        return LatentChange(cosines / images, 10 * math.log10(energy / difference) if difference else math.inf)
