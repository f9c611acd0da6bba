"""How far apart two sets of images lie in the features of a network that the caller brings: rFID.

The number is comparable with published ones only if the features are: those of the Inception network of
`pytorch-fid` or `clean-fid`, resized as they do, over as many images.
"""

import importlib
import os
import sys
from typing import Protocol, cast

import numpy as np
from jaxtyping import Float, UInt8

from flax_vae.train.errors import TrainError
from flax_vae.train.evaluation.statistics import RunningCovariance


class FeatureExtractor(Protocol):
    """Anything that turns images into vectors: one call per batch, all images of a batch of one size."""

    def __call__(self, images: UInt8[np.ndarray, "b h w 3"], /) -> Float[np.ndarray, "b d"]:
        """Returns one vector per image, of the same length for images of any size."""
        ...


def load_extractor(name: str) -> FeatureExtractor:
    """Imports a feature extractor by its name, from what is installed or lies in the working directory.

    Args:
      name: `module:function`, such as `my_inception:features`.

    Raises:
      TrainError: if there is no such module, or nothing callable of that name in it.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise TrainError(f"features={name!r} names no function; write module:function, such as my_inception:features")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a command does not look there by itself
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TrainError(f"features={name!r}: {error}; install it, or start where {module_name}.py lies") from error
    extractor = getattr(module, attribute, None)
    if not callable(extractor):
        raise TrainError(f"features={name!r}: {module.__file__} has no function {attribute!r}; name one that it has")
    return cast(FeatureExtractor, extractor)


def frechet_distance(first: RunningCovariance, second: RunningCovariance) -> float:
    """Squared Fréchet distance of two Gaussians, in the features' units squared.

    `|m1 - m2|² + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½)`, with the sample covariances (divided by n - 1).  The last trace is
    the sum of the singular values of `C1^½ C2^½`.  The eigenvalues of `C1^½ C2 C1^½`, whose roots they are, would give
    only half of the digits for the many directions in which there is next to no variance.

    Raises:
      ValueError: if one of the two has less than two vectors, or another dimension.

    Source: Dowson & Landau 1982; Heusel et al. 2017.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features of {first.mean.size} and {second.mean.size} dimensions; use one extractor for both")
    covariance1, covariance2 = first.covariance(correction=1), second.covariance(correction=1)
    overlap = np.linalg.svd(_root(covariance1) @ _root(covariance2), compute_uv=False).sum()
    apart = np.sum((first.mean - second.mean) ** 2)
    return max(float(apart + np.trace(covariance1) + np.trace(covariance2) - 2.0 * overlap), 0.0)


class FrechetMeter:
    """Gathers the features of originals and reconstructions."""

    def __init__(self, extractor: FeatureExtractor):
        self._extractor = extractor
        self._moments: tuple[RunningCovariance, RunningCovariance] | None = None

    def add(self, originals: UInt8[np.ndarray, "b h w 3"], reconstructions: UInt8[np.ndarray, "b h w 3"]) -> None:
        """Takes a batch of pairs in.

        Raises:
          TrainError: if the extractor returns anything but one finite vector of the same length per image.
        """
        features = [self._features(images) for images in (originals, reconstructions)]
        if self._moments is None:
            dimension = features[0].shape[1]
            self._moments = RunningCovariance(dimension), RunningCovariance(dimension)
        for moments, vectors in zip(self._moments, features, strict=True):
            if vectors.shape[1] != moments.mean.size:
                raise TrainError(
                    f"the features have {vectors.shape[1]} dimensions for images of {originals.shape[1:3]} and had "
                    f"{moments.mean.size} before; resize the images in the extractor"
                )
            moments.add(vectors)

    @property
    def dimension(self) -> int:
        """Of the features; 0 before the first."""
        return self._moments[0].mean.size if self._moments else 0

    def distance(self) -> float | None:
        """The distance, or None for less than two images."""
        if self._moments is None or self._moments[0].count < 2:
            return None
        return frechet_distance(*self._moments)

    def _features(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b d"]:
        features = np.asarray(self._extractor(images))
        if features.ndim != 2 or len(features) != len(images) or not np.isfinite(features).all():
            raise TrainError(
                f"the feature extractor made {features.dtype} of shape {features.shape} from {len(images)} images; one "
                "vector of finite numbers for each was expected"
            )
        return features


def _root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The symmetric square root; rounding may have made zeros negative."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
