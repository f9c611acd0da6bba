"""Batches spread over the devices of this process: each computes some of the images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class DataParallel:
    """A function of parameters and a batch, compiled once for each size of image.

    Attributes:
      devices: that compute.
      params: a copy on each of them.
    """

    def __init__(self, function: Callable[..., Any], params: dict[str, Any], devices: Sequence[Any]):
        """Places the parameters.

        Args:
          function: of the parameters and of arrays whose first axis is that of the images; what it returns has it too.
          params: of the model.
          devices: `jax.Device`s of this process.
        """
        self.devices = tuple(devices)
        mesh = Mesh(np.asarray(self.devices), ("images",))
        whole, self._split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("images"))
        self.params = jax.device_put(params, whole)
        self._run = jax.jit(function, out_shardings=self._split)  # in: as the arguments lie

    def __call__(self, full: int, *arrays: np.ndarray) -> Any:
        """Starts the computation and returns what it will give, for at least as many images as there are.

        Args:
          full: images to compute; of fewer, the first is repeated, so that there is one program for all batches.
          arrays: with at most so many images.
        """
        full = -(-full // len(self.devices)) * len(self.devices)
        placed = jax.device_put([_filled(array, full) for array in arrays], self._split)
        return self._run(self.params, *placed)


def rows_of(devices: Sequence[Any], height: int, factor: int) -> Sequence[Any]:
    """The most devices, of several, that the rows of an image can be spread over evenly.

    Args:
      devices: to choose from.
      height: of the image, a multiple of `factor`.
      factor: rows that stay together.
    """
    count = max(count for count in range(1, len(devices) + 1) if height // factor % count == 0)
    return devices[:count]


def _filled(array: np.ndarray, full: int) -> np.ndarray:
    if len(array) == full:
        return array
    return np.concatenate([array, np.repeat(array[:1], full - len(array), axis=0)])
