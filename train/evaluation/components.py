"""Draws latents in colours: their first three principal components as red, green and blue."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from flax_vae.convert.errors import ArgumentError
from flax_vae.train.evaluation.statistics import RunningCovariance

_COLOURS = 3
_BRIGHTEST = 3.0  # deviations from the mean, 128, that are drawn as 255; as many below it as 1


@dataclass(frozen=True)
class PrincipalComponents:
    """Directions of most variance among the channels of the latents of a data set.

    A direction and its opposite explain the same variance; the one is taken whose largest weight is positive, so that
    colours do not change from run to run.

    Attributes:
      mean: Mean of each channel.
      directions: Unit vectors over the channels, in decreasing order of variance; at most three.
      deviations: Standard deviation of the latents along each of them.
      share: Share of all variance that they explain.
    """

    mean: Float[np.ndarray, " z"]
    directions: Float[np.ndarray, "k z"]
    deviations: Float[np.ndarray, " k"]
    share: float

    @classmethod
    def of(cls, moments: RunningCovariance) -> "PrincipalComponents":
        """Returns the components of vectors.

        Args:
          moments: Mean and covariance of the vectors.

        Raises:
          ValueError: If there are no vectors, or one is not finite.
        """
        covariance = moments.covariance()
        if not np.isfinite(covariance).all():
            raise ArgumentError("the latents hold NaN or infinite values; expected finite ones")
        variances, vectors = np.linalg.eigh(covariance)  # in increasing order
        directions = vectors.T[::-1][:_COLOURS]
        largest = np.abs(directions).argmax(axis=1)
        directions = directions * np.where(np.take_along_axis(directions, largest[:, None], axis=1) < 0, -1.0, 1.0)
        variances = np.maximum(variances[::-1], 0.0)  # rounding may give less
        total = variances.sum()
        first = variances[:_COLOURS]
        return cls(moments.mean, directions, np.sqrt(first), float(first.sum() / total) if total else 0.0)

    def draw(self, latents: Float[np.ndarray, "h w z"]) -> UInt8[np.ndarray, "h w 3"]:
        """Returns latents as an image: the mean is grey, three deviations above it are bright and below it dark.

        Latents of fewer than three channels leave the other colours grey.

        Args:
          latents: Latents of one image.
        """
        scores = (np.asarray(latents, np.float64) - self.mean) @ self.directions.T
        scores /= np.where(self.deviations > 0, self.deviations, 1.0)
        colours = np.zeros((*scores.shape[:2], _COLOURS))
        colours[..., : scores.shape[-1]] = scores.clip(-_BRIGHTEST, _BRIGHTEST) / _BRIGHTEST
        return np.rint(128 + 127 * colours).astype(np.uint8)
