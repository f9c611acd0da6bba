"""Two ways to run one pure step on all devices; no other file knows which.

The state is whole on every device and has no device axis, so a checkpoint written under one way restores under the
other, and on another number of devices.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flax_vae.compilation import compiler_options, release_compiler_memory
from train.errors import TrainError

AXIS = "data"


class Parallel(ABC):
    """Data parallelism over the local devices.

    Attributes:
      devices: all that take part.
      replicated: sharding of what is whole on every device.
      split: sharding of what is cut along its first axis.
    """

    def __init__(self, devices: Sequence[Any] | None = None):
        """Takes all local devices, unless others are named."""
        self.devices = list(jax.local_devices() if devices is None else devices)
        mesh = Mesh(np.array(self.devices), (AXIS,))
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.split = NamedSharding(mesh, PartitionSpec(AXIS))

    def check_batch_size(self, batch_size: int) -> None:
        """Refuses a batch that the devices cannot share evenly.

        Raises:
          TrainError: naming both numbers.
        """
        count = len(self.devices)
        if batch_size % count:
            raise TrainError(
                f"batch_size={batch_size} cannot be shared evenly by {count} devices; "
                f"use a multiple of {count}, such as {-(-batch_size // count) * count}"
            )

    def place_state(self, state: Any) -> Any:
        """The state, whole on every device."""
        return jax.device_put(state, self.replicated)

    def compile_map(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Compiles `function(params, batch) -> batch` without a reduction, the same way in every mode."""
        return jax.jit(function, in_shardings=(self.replicated, self.split), out_shardings=self.split)

    @abstractmethod
    def place_batch(self, batch: np.ndarray) -> jax.Array:
        """The whole batch, each device holding its share."""

    @abstractmethod
    def compile(self, step: Callable[..., Any]) -> Callable[[Any, jax.Array], Any]:
        """Compiles `step(state, batch, axis_name=) -> (state, scores)`."""

    def _ahead(self, step: Any) -> Callable[[Any, jax.Array], Any]:
        """Compiles at the first call, once: a batch of another shape later is an error, not another compilation."""
        compiled = None

        def run(state: Any, batch: jax.Array) -> Any:
            nonlocal compiled
            if compiled is None:
                options = compiler_options(self.devices[0].platform)
                compiled = step.lower(state, batch).compile(compiler_options=options)
                release_compiler_memory()
            return compiled(state, batch)

        return run

    def _donated(self) -> tuple[int, ...]:
        # The old state makes room for the new one.  Not on CPU: there a checkpoint that is being written in the
        # background may still be reading the very same memory.
        return () if self.devices[0].platform == "cpu" else (0,)


class PmapParallel(Parallel):
    """`jax.pmap`: the step is told the name of the device axis and averages over it."""

    def place_batch(self, batch: np.ndarray) -> jax.Array:  # noqa: D102 - as in Parallel
        shares = batch.reshape(len(self.devices), -1, *batch.shape[1:])
        return jax.device_put(shares, self.split)

    def compile(self, step: Callable[..., Any]) -> Callable[[Any, jax.Array], Any]:  # noqa: D102 - as in Parallel
        def named(state: Any, batch: jax.Array) -> Any:
            return step(state, batch, axis_name=AXIS)

        return self._ahead(
            jax.pmap(
                named,
                axis_name=AXIS,
                in_axes=(None, 0),
                out_axes=None,
                devices=self.devices,
                donate_argnums=self._donated(),
            )
        )


class MeshParallel(Parallel):
    """`jax.jit` over a mesh: the step sees the whole batch, and the compiler puts in the averages."""

    def place_batch(self, batch: np.ndarray) -> jax.Array:  # noqa: D102 - as in Parallel
        return jax.device_put(batch, self.split)

    def compile(self, step: Callable[..., Any]) -> Callable[[Any, jax.Array], Any]:  # noqa: D102 - as in Parallel
        return self._ahead(
            jax.jit(
                step,
                in_shardings=(self.replicated, self.split),
                out_shardings=self.replicated,
                donate_argnums=self._donated(),
            )
        )


PARALLEL: dict[str, type[Parallel]] = {"pmap": PmapParallel, "mesh": MeshParallel}
