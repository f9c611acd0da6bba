"""Distributes batches over the devices of this process; each computes some of the images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class DataParallel:
    """A function of parameters and a batch, compiled once for each image size.

    Attributes:
      devices: Devices that compute.
      params: Parameters, replicated on all devices.
    """

    def __init__(self, function: Callable[..., Any], params: dict[str, Any], devices: Sequence[Any]):
        """Places the parameters.

        Args:
          function: Function of the parameters and of arrays; arguments and results have the images as first axis.
          params: Parameters of the model.
          devices: `jax.Device`s of this process.
        """
        self.devices = tuple(devices)
        mesh = Mesh(np.asarray(self.devices), ("images",))
        self._batch_sharding = NamedSharding(mesh, PartitionSpec("images"))
        self.params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        self._run = jax.jit(function, out_shardings=self._batch_sharding)  # inputs keep their shardings

    def __call__(self, compiled_size: int, *arrays: np.ndarray) -> Any:
        """Starts the computation; returns its results, which may have more images than the arguments.

        Args:
          compiled_size: Batch size of the compiled program; smaller batches are filled up with their first image.
          arrays: Arrays with at most `compiled_size` images.
        """
        compiled_size = -(-compiled_size // len(self.devices)) * len(self.devices)
        placed = jax.device_put([_filled(array, compiled_size) for array in arrays], self._batch_sharding)
        return self._run(self.params, *placed)


def rows_of(devices: Sequence[Any], height: int, factor: int) -> Sequence[Any]:
    """Returns as many devices as possible over which the rows of an image can be split evenly.

    Args:
      devices: Devices to choose from.
      height: Height of the image, a multiple of `factor`.
      factor: Number of rows that must stay on one device.
    """
    count = max(count for count in range(1, len(devices) + 1) if height // factor % count == 0)
    return devices[:count]


def _filled(array: np.ndarray, compiled_size: int) -> np.ndarray:
    if len(array) == compiled_size:
        return array
    return np.concatenate([array, np.repeat(array[:1], compiled_size - len(array), axis=0)])
