"""The operations between an array of ours and an array of theirs: each knows its own inverse.

All of them only move numbers, so they are exact in every dtype, and they convert gradients, moving averages and Adam
moments as well as weights.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Op:
    """A permutation of axes between PyTorch's order and Flax's.

    Attributes:
      name: what it is, for tables and errors.
      axes: the axes of their array in the order of ours.
    """

    name: str
    axes: tuple[int, ...] | None

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """Returns our array of theirs: a view, not a copy."""
        return array if self.axes is None else np.transpose(array, self.axes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns their array of ours, the inverse of `to_flax`: a view, not a copy."""
        return array if self.axes is None else np.transpose(array, np.argsort(self.axes))

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of their array, given the shape of ours."""
        return shape if self.axes is None else tuple(shape[axis] for axis in np.argsort(self.axes))


SAME = Op("same", None)
CONV = Op("OIHW -> HWIO", (2, 3, 1, 0))
LINEAR = Op("OI -> IO", (1, 0))
