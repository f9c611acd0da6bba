"""Two ways to run one pure step on all devices of all processes, behind one interface.

The state has no device axis, so a checkpoint written with one of them can be restored with the other, and on another
number of devices.  Each process reads its own slice of a batch.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from flax_vae.ops import compiler_options
from flax_vae.train.devices.compiled_step import CompiledStep
from flax_vae.train.errors import TrainError
from flax_vae.train.state import TrainState

AXIS = "data"
ROWS = "rows"


class Parallel(ABC):
    """Data parallelism over devices, by default all devices.

    A step can also be compiled for devices that are not attached, such as those of `jax.experimental.topologies`.

    Attributes:
      devices: Devices of all processes, grouped by process.
      local_devices: Devices of this process.
      devices_per_image: Number of neighbouring devices over which the rows of one image are split.
      replicated: Sharding of arrays that every device holds in full.
      batch_sharding: Sharding of a batch.
    """

    def __init__(self, devices: Sequence[Any] | None = None, devices_per_image: int = 1):
        """Uses all devices of all processes, unless others are given.

        Raises:
          TrainError: If the devices of one image would belong to several processes.
        """
        # The chips of a pod are numbered across hosts, but each process reads a contiguous slice of a batch.
        self.devices = sorted(jax.devices() if devices is None else devices, key=lambda device: device.process_index)
        local = set(jax.local_devices())
        self.local_devices = [device for device in self.devices if device in local]
        self.devices_per_image = devices_per_image
        each = math.gcd(*Counter(device.process_index for device in self.devices).values())
        if each % devices_per_image:
            fitting = [str(number) for number in range(1, each + 1) if each % number == 0]
            raise TrainError(
                f"devices_per_image={devices_per_image} must divide {each}, the number of devices of a process, which "
                f"keeps its images to itself; use {' or '.join(fitting)}"
            )
        cut = devices_per_image > 1
        grid = np.array(self.devices).reshape(-1, devices_per_image)
        mesh = Mesh(grid, (AXIS, ROWS)) if cut else _line(self.devices)
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.batch_sharding = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
        self._groups = len(self.devices) // devices_per_image
        self._gather = jax.jit(lambda tree: tree, out_shardings=self.replicated)

    def check_batch_size(self, batch_size: int, parts: int = 1) -> None:
        """Checks that the devices can share each part of a batch evenly.

        Args:
          batch_size: Images in a batch.
          parts: Number of parts that a batch is accumulated from.

        Raises:
          TrainError: If they cannot; names all numbers.
        """
        count = self._groups * parts
        if batch_size % count:
            of = "" if self.devices_per_image == 1 else f"groups of devices_per_image={self.devices_per_image} "
            shared = f"{self._groups} {of}devices"
            shared += f" in accumulate={parts} parts" if parts > 1 else ""
            raise TrainError(
                f"batch_size={batch_size} cannot be shared evenly by {shared}; "
                f"use a multiple of {count}, such as {-(-batch_size // count) * count}"
            )

    def local_slice(self, batch_size: int) -> range:
        """Returns the indices of the examples in a batch that this process reads.

        Args:
          batch_size: Images in a batch of all processes.
        """
        each = batch_size // self._groups
        first = self.devices.index(self.local_devices[0]) // self.devices_per_image
        return range(first * each, (first + len(self.local_devices) // self.devices_per_image) * each)

    def batch_shape(self, batch_size: int, crop_size: int) -> jax.ShapeDtypeStruct:
        """Returns the shape and sharding of a batch of square crops, as made by `place_batch`.

        Args:
          batch_size: Images in a batch of all processes.
          crop_size: Height and width of a crop.
        """
        return jax.ShapeDtypeStruct((batch_size, crop_size, crop_size, 3), np.float32, sharding=self.batch_sharding)

    def shardings(self, state: Any) -> Any:
        """Returns the sharding of every leaf of a state, as a tree.

        Args:
          state: Tree of arrays, or of their shapes.
        """
        return jax.tree.map(lambda leaf: self.replicated, state)

    def place_state(self, state: Any) -> Any:
        """Puts the state, which is equal in all processes, onto the devices.

        Args:
          state: Tree of arrays.

        Returns:
          State on the devices.
        """
        return jax.device_put(state, self.shardings(state))

    def replicate(self, tree: Any) -> Any:
        """Puts constants onto every device in full.

        Args:
          tree: Tree of arrays.

        Returns:
          Constants on the devices.
        """
        return jax.device_put(tree, self.replicated)

    def gather(self, tree: Any) -> Any:
        """Returns a part of the state, in full on every device of this process; a collective call of all processes.

        Args:
          tree: Tree of arrays on the devices.
        """
        whole = tree
        if not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
            whole = self._gather(tree)
        if len(self.local_devices) == len(self.devices):
            return whole
        place = NamedSharding(_line(self.local_devices), PartitionSpec())
        local = lambda leaf: jax.make_array_from_single_device_arrays(  # noqa: E731
            leaf.shape, place, [shard.data for shard in leaf.addressable_shards]
        )
        return jax.tree.map(local, whole)

    @abstractmethod
    def place_batch(self, share: np.ndarray) -> jax.Array:
        """Returns the global batch of all processes, given the slice that this process read.

        Args:
          share: Images that this process read.
        """

    @abstractmethod
    def compile(self, step: Callable[..., Any]) -> CompiledStep:
        """Compiles `step(state, batch, constants, axis_name=) -> (state, scores)`.

        Args:
          step: Function of one update.

        Returns:
          Compiled step.
        """

    def _ahead(self, jit: Callable[[Any], Any], counted: Callable[..., Any] | None = None) -> CompiledStep:
        return CompiledStep(jit, compiler_options(self.devices[0].platform), counted)

    def _donated(self) -> tuple[int, ...]:
        # The memory of the old state is reused for the new one.  Not on CPU, where a checkpoint that is written in the
        # background may still read that memory.
        return () if self.devices[0].platform == "cpu" else (0,)


def _line(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))


class PmapParallel(Parallel):
    """Uses `jax.pmap`: the step receives the name of the device axis and averages over it."""

    def place_batch(self, share: np.ndarray) -> jax.Array:  # noqa: D102 - as in Parallel
        return jax.make_array_from_process_local_data(
            self.batch_sharding, share.reshape(len(self.local_devices), -1, *share.shape[1:])
        )

    def batch_shape(self, batch_size: int, crop_size: int) -> jax.ShapeDtypeStruct:  # noqa: D102 - as in Parallel
        whole, count = super().batch_shape(batch_size, crop_size), len(self.devices)
        return whole.update(shape=(count, batch_size // count, *whole.shape[1:]))

    def compile(self, step: Callable[..., Any]) -> CompiledStep:  # noqa: D102 - as in Parallel
        def named(state: Any, batch: jax.Array, constants: Any) -> Any:
            return step(state, batch, constants, axis_name=AXIS)

        pmapped = jax.pmap(
            named,
            axis_name=AXIS,
            in_axes=(None, 0, None),
            out_axes=None,
            devices=self.devices,
            donate_argnums=self._donated(),
        )

        def whole(state: Any, batch: jax.Array, constants: Any) -> Any:
            return step(state, batch.reshape(-1, *batch.shape[2:]), constants)

        # With several processes, JAX traces a pmapped function for this one's devices only.
        return self._ahead(lambda state: pmapped, counted=whole if jax.process_count() > 1 else None)


class MeshParallel(Parallel):
    """Uses `jax.jit` over a mesh: the step is written for the global batch, and the compiler inserts the averages.

    With `devices_per_image`, each image and its feature maps are split by rows over several devices; the compiler
    exchanges the rows next to a boundary for convolutions, and sums statistics over all devices of an image.

    With `zero`, each device keeps only its shard of the optimizer states and of the moving average; the compiler then
    reduce-scatters the gradients instead of all-reducing them, and all-gathers the new weights.

    Source: Rajbhandari et al. 2020 (ZeRO), stage 1.
    """

    def __init__(self, devices: Sequence[Any] | None = None, *, zero: bool = False, devices_per_image: int = 1):
        super().__init__(devices, devices_per_image)
        self._zero = zero

    def shardings(self, state: Any) -> Any:  # noqa: D102 - as in Parallel
        replicated = super().shardings(state)
        if not self._zero or not isinstance(state, TrainState):
            return replicated
        sharded = jax.tree.map(self._sharding_of, state)
        discriminator = replicated.discriminator
        if discriminator is not None:
            discriminator = replace(discriminator, opt_state=sharded.discriminator.opt_state)
        return replace(replicated, opt_state=sharded.opt_state, ema=sharded.ema, discriminator=discriminator)

    def _sharding_of(self, leaf: Any) -> Sharding:
        """Returns a sharding along the longest axis that the devices divide evenly."""
        count = len(self.devices)
        axes = [axis for axis, size in enumerate(leaf.shape) if size % count == 0]
        if not axes:
            return self.replicated
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        mesh = self.replicated.mesh
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, mesh.axis_names))

    def place_batch(self, share: np.ndarray) -> jax.Array:  # noqa: D102 - as in Parallel
        return jax.make_array_from_process_local_data(self.batch_sharding, share)

    def compile(self, step: Callable[..., Any]) -> CompiledStep:  # noqa: D102 - as in Parallel
        def jit(state: Any) -> Any:
            places = self.shardings(state)
            return jax.jit(
                step,
                in_shardings=(places, self.batch_sharding, self.replicated),
                out_shardings=(places, self.replicated),
                donate_argnums=self._donated(),
            )

        return self._ahead(jit)


def make_parallel(
    mode: str, *, zero: bool = False, devices_per_image: int = 1, devices: Sequence[Any] | None = None
) -> Parallel:
    """Returns the parallelism that a configuration names, `pmap` or `mesh`; `pmap` has neither option.

    Args:
      mode: `pmap` or `mesh`.
      zero: Whether the optimizer's state is sharded over the devices.
      devices_per_image: Number of devices that share the rows of an image.
      devices: Devices of all processes; None takes all.
    """
    return (
        PmapParallel(devices)
        if mode == "pmap"
        else MeshParallel(devices, zero=zero, devices_per_image=devices_per_image)
    )
