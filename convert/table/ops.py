"""The operations between an array of ours and an array of theirs: each knows its own inverse.

All of them only move numbers, so they are exact in every dtype, and they convert gradients, moving averages and Adam
moments as well as weights.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Op:
    """A permutation of axes between their order and ours, after which ours may have leading axes of length one.

    Attributes:
      name: what it is, for tables and errors: their axes -> ours.
      axes: the axes of their array in the order of ours; None leaves them as they are.
      ones: how many leading axes of length one ours has, and theirs does not.
    """

    name: str
    axes: tuple[int, ...] | None = None
    ones: int = 0

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """Returns our array of theirs: a view, not a copy."""
        array = array if self.axes is None else np.transpose(array, self.axes)
        return array[(*(np.newaxis,) * self.ones, ...)]

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns their array of ours, the inverse of `to_flax`: a view, not a copy."""
        array = array[(*(0,) * self.ones, ...)]
        return array if self.axes is None else np.transpose(array, np.argsort(self.axes))

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of their array, given the shape of ours."""
        shape = shape[self.ones :]
        return shape if self.axes is None else tuple(shape[axis] for axis in np.argsort(self.axes))


SAME = Op("same")
CONV = Op("OIHW -> HWIO", (2, 3, 1, 0))
LINEAR = Op("OI -> IO", (1, 0))
CONV_AS_LINEAR = Op("OI -> 11IO", (1, 0), ones=2)  # a 1x1 convolution of ours that is a linear layer of theirs
CONV_AS_DENSE = Op("IO -> 11IO", ones=2)  # ... of theirs in Flax
