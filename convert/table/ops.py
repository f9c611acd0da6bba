"""Invertible operations between an array in our layout and the array in another layout.

They only move elements, so they are exact in every dtype and also convert gradients, moving averages and Adam moments.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Op:
    """A permutation of axes from their order to ours; our array may have extra leading axes of length one.

    Attributes:
      name: Axes of their array -> axes of ours, for tables and errors.
      axes: Axes of their array in our order; None keeps the order.
      ones: Number of leading axes of length one that only our array has.
    """

    name: str
    axes: tuple[int, ...] | None = None
    ones: int = 0

    def to_flax(self, array: np.ndarray) -> np.ndarray:
        """Returns our array, given theirs, as a view.

        Args:
          array: Array in PyTorch's axes.
        """
        array = array if self.axes is None else np.transpose(array, self.axes)
        return array[(*(np.newaxis,) * self.ones, ...)]

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns their array, given ours, as a view; the inverse of `to_flax`.

        Args:
          array: Array in Flax's axes.
        """
        array = array[(*(0,) * self.ones, ...)]
        return array if self.axes is None else np.transpose(array, np.argsort(self.axes))

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of their array, given the shape of ours.

        Args:
          shape: Shape of our array.
        """
        shape = shape[self.ones :]
        return shape if self.axes is None else tuple(shape[axis] for axis in np.argsort(self.axes))


SAME = Op("same")
CONV = Op("OIHW -> HWIO", (2, 3, 1, 0))
LINEAR = Op("OI -> IO", (1, 0))
CONV_AS_LINEAR = Op("OI -> 11IO", (1, 0), ones=2)  # our 1x1 convolution is their linear layer in PyTorch
CONV_AS_DENSE = Op("IO -> 11IO", ones=2)  # our 1x1 convolution is their linear layer in Flax
