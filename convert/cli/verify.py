"""Compares the weights of two files in any layouts: `flax-vae-convert verify`."""

from typing import NamedTuple

import numpy as np

from flax_vae.convert.table import Weights, flatten, to_flax


class Difference(NamedTuple):
    """One difference between two sets of weights.

    Attributes:
      name: Flax path of a tensor, or name of an architecture field.
      what: Short description.
      largest: Largest absolute difference, for two arrays of one shape; NaN if only one has a NaN.
    """

    name: str
    what: str
    largest: float | None = None


def compare_weights(a: Weights, b: Weights) -> tuple[int, list[Difference]]:
    """Returns the number of tensors of `a` and all differences of `b` from it; none if every bit is equal.

    Ignores the batch count that PyTorch stores with FLUX.2's statistics, which is not a weight.
    """
    differences = []
    if a.config_known and b.config_known:
        pairs = [(name, vars(a.params)[name], vars(b.params)[name]) for name in a.params.differences(b.params)]
        differences += [Difference(name, f"{one!r} and {two!r}") for name, one, two in pairs]
    ours, theirs = (flatten(to_flax(weights.tensors, weights.params, weights.layout)) for weights in (a, b))
    differences += [Difference(name, "only in the first") for name in ours if name not in theirs]
    differences += [Difference(name, "only in the second") for name in theirs if name not in ours]
    for name in ours:
        if name in theirs:
            differences += _between(name, np.asarray(ours[name]), np.asarray(theirs[name]))
    return len(ours), differences


def _between(name: str, one: np.ndarray, two: np.ndarray) -> list[Difference]:
    if one.shape != two.shape:
        return [Difference(name, f"shapes {one.shape} and {two.shape}")]
    if one.dtype == two.dtype and _bits(one) == _bits(two):
        return []
    # Two infinities of one sign, or two NaNs, count as equal.
    wide, other = one.astype(np.float64), two.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where((wide == other) | (np.isnan(wide) & np.isnan(other)), 0.0, np.abs(wide - other))
    count = np.count_nonzero(apart)
    dtypes = "" if one.dtype == two.dtype else f", {one.dtype} and {two.dtype}"
    return [Difference(name, f"{count:,} of {one.size:,} numbers{dtypes}", float(apart.max(initial=0)))]


def _bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()
