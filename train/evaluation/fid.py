"""Measures rFID: the Fréchet distance between two sets of images in the features of a network that the caller provides.

The result is comparable with published numbers only if the features are those of the Inception network of
`pytorch-fid` or `clean-fid`, the images are resized in that way, and there are equally many of them.
"""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Protocol, cast

import numpy as np
from jaxtyping import Float, UInt8

from flax_vae.convert.errors import ArgumentError
from flax_vae.train.errors import TrainError
from flax_vae.train.evaluation.statistics import RunningCovariance


class FeatureExtractor(Protocol):
    """A function from images to feature vectors, called once per batch; all images of a batch have one size."""

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"], /) -> Float[np.ndarray, "b d"]:
        """Returns one vector per image, whose length does not depend on the size of the image."""
        ...


def load_extractor(name: str) -> FeatureExtractor:
    """Imports a feature extractor from an installed package or the working directory.

    Args:
      name: Name as `module:function`, such as `my_inception:features`.

    Returns:
      Function of a batch of 8-bit images that returns a vector for each.

    Raises:
      TrainError: If the module or the function does not exist.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise TrainError(f"features={name!r} must be module:function, such as my_inception:features")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script does not search it
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TrainError(f"features={name!r}: {error}; install it, or run in the folder of {module_name}.py") from error
    extractor = getattr(module, attribute, None)
    if not callable(extractor):
        raise TrainError(f"features={name!r}: {module.__file__} has no function {attribute!r}; name another")
    return cast(FeatureExtractor, extractor)


def frechet_distance(first: RunningCovariance, second: RunningCovariance) -> float:
    """Returns the squared Fréchet distance of two Gaussians, in squared units of the features.

    The distance is `|m1 - m2|² + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½)` with sample covariances (divided by n - 1).  The
    last trace is computed as the sum of the singular values of `C1^½ C2^½`.  The eigenvalues of `C1^½ C2 C1^½` are the
    squares of these and would keep only half of the digits in directions of little variance.

    Raises:
      ValueError: If one has fewer than two vectors, or their dimensions differ.

    Source: Dowson & Landau 1982; Heusel et al. 2017.
    """
    if first.mean.shape != second.mean.shape:
        raise ArgumentError(
            f"features have {first.mean.size} and {second.mean.size} dimensions; use one extractor for both"
        )
    covariance1, covariance2 = first.covariance(correction=1), second.covariance(correction=1)
    overlap = np.linalg.svd(_root(covariance1) @ _root(covariance2), compute_uv=False).sum()
    apart = np.sum((first.mean - second.mean) ** 2)
    return max(float(apart + np.trace(covariance1) + np.trace(covariance2) - 2.0 * overlap), 0.0)


class FrechetMeter:
    """Collects the features of originals and reconstructions."""

    def __init__(self, extractor: FeatureExtractor):
        """Starts without any features.

        Args:
          extractor: Function of a batch of 8-bit images that returns a vector for each; see `load_extractor`.
        """
        self._extractor = extractor
        self._statistics: tuple[RunningCovariance, RunningCovariance] | None = None

    def add(self, originals: UInt8[np.ndarray, "b h w 3"], reconstructions: UInt8[np.ndarray, "b h w 3"]) -> None:
        """Adds a batch of pairs.

        Args:
          originals: 8-bit images.
          reconstructions: 8-bit images, in the same order.

        Raises:
          TrainError: If the extractor does not return one finite vector of constant length per image.
        """
        features = [self._features(images) for images in (originals, reconstructions)]
        if self._statistics is None:
            dimension = features[0].shape[1]
            self._statistics = RunningCovariance(dimension), RunningCovariance(dimension)
        for statistics, vectors in zip(self._statistics, features, strict=True):
            if vectors.shape[1] != statistics.mean.size:
                raise TrainError(
                    f"the features have {vectors.shape[1]} dimensions for images of {originals.shape[1:3]} and had "
                    f"{statistics.mean.size} before; resize the images in the extractor"
                )
            statistics.add(vectors)

    @property
    def dimension(self) -> int:
        """Dimension of the features; 0 before the first batch."""
        return self._statistics[0].mean.size if self._statistics else 0

    def merge(self, gather: Callable[[np.ndarray], np.ndarray]) -> None:
        """Adds the features of all processes; a collective call of all of them.

        Args:
          gather: Function that returns the float64 arrays of all processes, stacked; see
            `flax_vae.train.devices.gather_float64`.
        """
        dimension = int(gather(np.array([self.dimension], np.float64)).max())  # a process may have had no image
        own = self._statistics or (RunningCovariance(dimension), RunningCovariance(dimension))
        self._statistics = own[0].merged(gather), own[1].merged(gather)

    def distance(self) -> float | None:
        """Returns the distance, or None for fewer than two images."""
        if self._statistics is None or self._statistics[0].count < 2:
            return None
        return frechet_distance(*self._statistics)

    def _features(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b d"]:
        features = np.asarray(self._extractor(images))
        if features.ndim != 2 or len(features) != len(images) or not np.isfinite(features).all():
            raise TrainError(
                f"the feature extractor returned {features.dtype} of shape {features.shape} for {len(images)} images; "
                "expected one vector of finite numbers for each"
            )
        return features


def _root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """Returns the symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
