"""Two ways to run one pure step on all devices of all processes; no other file knows which.

The state has no device axis, so a checkpoint written under one way restores under the other, and on another number of
devices.  Each process reads its own share of a batch.
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
    """Data parallelism over devices, by default all there are.

    A step can also be compiled for devices that are elsewhere, such as those of `jax.experimental.topologies`.

    Attributes:
      devices: all that take part, those of each process together.
      here: those of them that belong to this process.
      devices_per_image: how many neighbouring devices share the rows of one image.
      whole: sharding of what is whole on every device.
      split: sharding of a batch.
    """

    def __init__(self, devices: Sequence[Any] | None = None, devices_per_image: int = 1):
        """Takes all devices of all processes, unless others are named.

        Raises:
          TrainError: if an image's devices would belong to several processes.
        """
        # The chips of a pod are numbered across its hosts, but what a process reads of a batch is one piece.
        self.devices = sorted(jax.devices() if devices is None else devices, key=lambda device: device.process_index)
        local = set(jax.local_devices())
        self.here = [device for device in self.devices if device in local]
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
        self.whole = NamedSharding(mesh, PartitionSpec())
        self.split = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
        self._groups = len(self.devices) // devices_per_image
        self._gather = jax.jit(lambda tree: tree, out_shardings=self.whole)

    def check_batch_size(self, batch_size: int, parts: int = 1) -> None:
        """Refuses a batch whose parts the devices cannot share evenly.

        Raises:
          TrainError: naming all numbers.
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

    def share(self, batch_size: int) -> range:
        """Which examples of a batch this process reads."""
        each = batch_size // self._groups
        first = self.devices.index(self.here[0]) // self.devices_per_image
        return range(first * each, (first + len(self.here) // self.devices_per_image) * each)

    def batch_shape(self, batch_size: int, crop_size: int) -> jax.ShapeDtypeStruct:
        """What `place_batch` makes of all shares of a batch of squares, without the squares."""
        return jax.ShapeDtypeStruct((batch_size, crop_size, crop_size, 3), np.float32, sharding=self.split)

    def shardings(self, state: Any) -> Any:
        """Where every leaf of a state lies, as a tree like it."""
        return jax.tree.map(lambda leaf: self.whole, state)

    def place_state(self, state: Any) -> Any:
        """The state, which every process made alike, where it belongs."""
        return jax.device_put(state, self.shardings(state))

    def place_whole(self, tree: Any) -> Any:
        """Constants, whole on every device."""
        return jax.device_put(tree, self.whole)

    def bring_here(self, tree: Any) -> Any:
        """A part of the state, whole on every device of this process; all processes must ask for it together."""
        whole = tree
        if not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
            whole = self._gather(tree)
        if len(self.here) == len(self.devices):
            return whole
        place = NamedSharding(_line(self.here), PartitionSpec())
        local = lambda leaf: jax.make_array_from_single_device_arrays(  # noqa: E731
            leaf.shape, place, [shard.data for shard in leaf.addressable_shards]
        )
        return jax.tree.map(local, whole)

    def map_here(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, np.ndarray], np.ndarray]:
        """Compiles `function(params, batch) -> batch` for this process's devices, each of which gets a share."""
        mesh = _line(self.here)
        whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
        compiled = jax.jit(function, in_shardings=(whole, split), out_shardings=split)
        return lambda params, batch: jax.device_get(compiled(params, jax.device_put(batch, split)))

    @abstractmethod
    def place_batch(self, share: np.ndarray) -> jax.Array:
        """The whole batch, each device holding its part, of this process's share."""

    @abstractmethod
    def compile(self, step: Callable[..., Any]) -> CompiledStep:
        """Compiles `step(state, batch, constants, axis_name=) -> (state, scores)`."""

    def _ahead(self, jit: Callable[[Any], Any]) -> CompiledStep:
        return CompiledStep(jit, compiler_options(self.devices[0].platform))

    def _donated(self) -> tuple[int, ...]:
        # The old state makes room for the new one.  Not on CPU: there a checkpoint that is being written in the
        # background may still be reading the very same memory.
        return () if self.devices[0].platform == "cpu" else (0,)


def _line(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))


class PmapParallel(Parallel):
    """`jax.pmap`: the step is told the name of the device axis and averages over it."""

    def place_batch(self, share: np.ndarray) -> jax.Array:  # noqa: D102 - as in Parallel
        return jax.make_array_from_process_local_data(self.split, share.reshape(len(self.here), -1, *share.shape[1:]))

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
        return self._ahead(lambda state: pmapped)


class MeshParallel(Parallel):
    """`jax.jit` over a mesh: the step sees the whole batch, and the compiler puts in the averages.

    With `devices_per_image`, each image lies on as many devices, cut across, and with it all that is computed from it;
    the compiler exchanges the rows next to a cut for convolutions, and sums statistics over all of the image's devices.

    With `zero`, each device keeps only its share of the optimisers' states and of the moving average; the compiler
    then scatters the gradients instead of summing them everywhere, and gathers the new weights.

    Source: Rajbhandari et al. 2020 (ZeRO), stage 1.
    """

    def __init__(self, devices: Sequence[Any] | None = None, *, zero: bool = False, devices_per_image: int = 1):
        super().__init__(devices, devices_per_image)
        self._zero = zero

    def shardings(self, state: Any) -> Any:  # noqa: D102 - as in Parallel
        whole = super().shardings(state)
        if not self._zero or not isinstance(state, TrainState):
            return whole
        cut = jax.tree.map(self._cut, state)
        player = whole.discriminator and replace(whole.discriminator, opt_state=cut.discriminator.opt_state)
        return replace(whole, opt_state=cut.opt_state, ema=cut.ema, discriminator=player)

    def _cut(self, leaf: Any) -> Sharding:
        """Along the longest axis that the devices can share evenly."""
        count = len(self.devices)
        axes = [axis for axis, size in enumerate(leaf.shape) if size % count == 0]
        if not axes:
            return self.whole
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        mesh = self.whole.mesh
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, mesh.axis_names))

    def place_batch(self, share: np.ndarray) -> jax.Array:  # noqa: D102 - as in Parallel
        return jax.make_array_from_process_local_data(self.split, share)

    def compile(self, step: Callable[..., Any]) -> CompiledStep:  # noqa: D102 - as in Parallel
        def jit(state: Any) -> Any:
            places = self.shardings(state)
            return jax.jit(
                step,
                in_shardings=(places, self.split, self.whole),
                out_shardings=(places, self.whole),
                donate_argnums=self._donated(),
            )

        return self._ahead(jit)


def make_parallel(
    mode: str, *, zero: bool = False, devices_per_image: int = 1, devices: Sequence[Any] | None = None
) -> Parallel:
    """The way to run on several devices that a configuration names, `pmap` or `mesh`; the first has neither option."""
    return (
        PmapParallel(devices)
        if mode == "pmap"
        else MeshParallel(devices, zero=zero, devices_per_image=devices_per_image)
    )
