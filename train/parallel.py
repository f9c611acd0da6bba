"""Two ways to run one pure step on all devices of all processes; no other file knows which.

The state has no device axis, so a checkpoint written under one way restores under the other, and on another number of
devices.  Each process reads its own share of a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from flax_vae.compilation import compiler_options, release_compiler_memory
from train.errors import TrainError
from train.state import TrainState

AXIS = "data"


class Parallel(ABC):
    """Data parallelism over devices, by default all there are.

    Attributes:
      devices: all that take part.
      here: those of them that belong to this process.
      whole: sharding of what is whole on every device.
      split: sharding of what is cut along its first axis.
    """

    def __init__(self, devices: Sequence[Any] | None = None):
        """Takes all devices of all processes, unless others are named."""
        self.devices = list(jax.devices() if devices is None else devices)
        self.here = [device for device in self.devices if device.process_index == jax.process_index()]
        mesh, local = (Mesh(np.array(devices), (AXIS,)) for devices in (self.devices, self.here))
        self.whole = NamedSharding(mesh, PartitionSpec())
        self.split = NamedSharding(mesh, PartitionSpec(AXIS))
        self._whole_here = NamedSharding(local, PartitionSpec())
        self._split_here = NamedSharding(local, PartitionSpec(AXIS))
        self._gather = jax.jit(lambda tree: tree, out_shardings=self.whole)

    def check_batch_size(self, batch_size: int, parts: int = 1) -> None:
        """Refuses a batch whose parts the devices cannot share evenly.

        Raises:
          TrainError: naming all numbers.
        """
        count = len(self.devices) * parts
        if batch_size % count:
            shared = f"{len(self.devices)} devices" + (f" in accumulate={parts} parts" if parts > 1 else "")
            raise TrainError(
                f"batch_size={batch_size} cannot be shared evenly by {shared}; "
                f"use a multiple of {count}, such as {-(-batch_size // count) * count}"
            )

    def share(self, batch_size: int) -> range:
        """Which examples of a batch this process reads."""
        each = batch_size // len(self.devices)
        first = self.devices.index(self.here[0])
        return range(first * each, (first + len(self.here)) * each)

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
        local = lambda leaf: jax.make_array_from_single_device_arrays(  # noqa: E731
            leaf.shape, self._whole_here, [shard.data for shard in leaf.addressable_shards]
        )
        return jax.tree.map(local, whole)

    def map_here(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, np.ndarray], np.ndarray]:
        """Compiles `function(params, batch) -> batch` for this process's devices, each of which gets a share."""
        compiled = jax.jit(function, in_shardings=(self._whole_here, self._split_here), out_shardings=self._split_here)
        return lambda params, batch: jax.device_get(compiled(params, jax.device_put(batch, self._split_here)))

    @abstractmethod
    def place_batch(self, share: np.ndarray) -> jax.Array:
        """The whole batch, each device holding its part, of this process's share."""

    @abstractmethod
    def compile(self, step: Callable[..., Any]) -> "CompiledStep":
        """Compiles `step(state, batch, constants, axis_name=) -> (state, scores)`."""

    def _ahead(self, jit: Callable[[Any], Any]) -> "CompiledStep":
        return CompiledStep(jit, compiler_options(self.devices[0].platform))

    def _donated(self) -> tuple[int, ...]:
        # The old state makes room for the new one.  Not on CPU: there a checkpoint that is being written in the
        # background may still be reading the very same memory.
        return () if self.devices[0].platform == "cpu" else (0,)


class CompiledStep:
    """Compiles at the first call, once: a batch of another shape later is an error, not another compilation.

    Attributes:
      flops: operations of one call on one device, as the compiler counts them; None until then, or if it does not say.
    """

    def __init__(self, jit: Callable[[Any], Any], options: dict[str, Any] | None):
        """Compiles nothing yet.

        Args:
          jit: from a state to the function to lower.
          options: of the compiler.
        """
        self._jit, self._options = jit, options
        self._compiled: Any = None
        self.flops: float | None = None

    def lower(self, state: Any, batch: Any, constants: Any) -> Any:
        """The program of arrays, or of their shapes, before it is compiled."""
        return self._jit(state).lower(state, batch, constants)

    def __call__(self, state: Any, batch: jax.Array, constants: Any) -> Any:
        """Runs `(state, batch, constants) -> (state, scores)`."""
        if self._compiled is None:
            self._compiled = self.lower(state, batch, constants).compile(compiler_options=self._options)
            self.flops = (self._compiled.cost_analysis() or {}).get("flops")
            release_compiler_memory()
        return self._compiled(state, batch, constants)


class PmapParallel(Parallel):
    """`jax.pmap`: the step is told the name of the device axis and averages over it."""

    def place_batch(self, share: np.ndarray) -> jax.Array:  # noqa: D102 - as in Parallel
        return jax.make_array_from_process_local_data(self.split, share.reshape(len(self.here), -1, *share.shape[1:]))

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

    With `zero`, each device keeps only its share of the optimisers' states and of the moving average; the compiler
    then scatters the gradients instead of summing them everywhere, and gathers the new weights.

    Source: Rajbhandari et al. 2020 (ZeRO), stage 1.
    """

    def __init__(self, devices: Sequence[Any] | None = None, *, zero: bool = False):
        super().__init__(devices)
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
        return NamedSharding(self.whole.mesh, PartitionSpec(*[None] * longest, AXIS))

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


def make_parallel(mode: str, *, zero: bool = False, devices: Sequence[Any] | None = None) -> Parallel:
    """The way to run on several devices that a configuration names, `pmap` or `mesh`."""
    return PmapParallel(devices) if mode == "pmap" else MeshParallel(devices, zero=zero)
