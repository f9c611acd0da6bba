"""Estimates the memory, time and cost of a run on given devices, by compiling its step for them ahead of time."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flax_vae.ops import compiler_options
from flax_vae.train.build import make_components, make_state
from flax_vae.train.config import TrainConfig
from flax_vae.train.devices import Chip, find_chip, make_parallel
from flax_vae.train.errors import TrainError
from flax_vae.train.losses import lpips_shapes
from flax_vae.train.plan.topologies import Target
from flax_vae.train.step import train_step

REMAT = ("none", "attention", "blocks")  # in order of decreasing memory


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a step runs.

    Attributes:
      arguments: State, batch and constants; a donated state is also the memory of the new one.
      temporaries: Activations, gradients, workspace.
      code: Program.
      total: Peak of all; if compilation failed, the amount that it asked for, and the others are None.
    """

    total: int
    arguments: int | None = None
    temporaries: int | None = None
    code: int | None = None


@dataclass(frozen=True)
class Plan:
    """Estimate for one step.

    Attributes:
      name: Name of the recipe.
      target: Devices.
      config: Settings of the run.
      memory: Memory on each device.
      fits: Whether that fits the device; None if the size of its memory is unknown.
      operations: Operations of one step on one device as it computes them, from `flax_vae.train.devices.count_flops`,
        with those that rematerialisation computes again.
      traffic: Bytes that a device's operations read and write as counted by the compiler, which counts the body of a
        loop once, and also what stays in memory on a TPU's chip; None if it does not count them.
      dollars: Price of one device per hour, if known.
    """

    name: str
    target: Target
    config: TrainConfig
    memory: Memory
    fits: bool | None
    operations: float
    traffic: float | None
    dollars: float | None

    @property
    def chip(self) -> Chip | None:
        """Published figures of the device."""
        return find_chip(self.target.kind)

    @property
    def seconds(self) -> float | None:
        """Lower bound on the seconds per step: the larger of computing time and memory time at the peak (a roofline).

        Where memory takes longer, it is a bound only as far as the compiler's traffic is that of the device's memory.

        Source: Williams, Waterman and Patterson 2009, "Roofline".
        """
        if self.chip is None or self.fits is False:
            return None
        moving = self.traffic / self.chip.bandwidth if self.traffic and self.chip.bandwidth else 0.0
        return max(self.operations / self.chip.flops, moving)

    @property
    def images_per_second(self) -> float | None:
        """Upper bound on the images per second."""
        return self.config.batch_size / self.seconds if self.seconds else None

    @property
    def dollars_per_million(self) -> float | None:
        """Lower bound on the price of training on a million images."""
        if self.images_per_second is None or self.dollars is None:
            return None
        return self.dollars * self.target.count / 3600 * 1e6 / self.images_per_second


def plan(config: TrainConfig, target: Target, *, name: str = "", dollars: float | None = None) -> Plan:
    """Compiles the step of a run for the devices, as the run itself does.

    Args:
      config: Settings of the run; no images and no weights are read.
      target: Devices.
      name: Name of the plan.
      dollars: Price of one device per hour; None takes the published price.

    Returns:
      Memory, operations, time and cost of a step.

    Raises:
      TrainError: If the devices cannot share the batch or the rows evenly.
    """
    parallel = make_parallel(
        config.parallel, zero=config.zero, devices_per_image=config.devices_per_image, devices=target.devices
    )
    parallel.check_batch_size(config.batch_size, config.optim.accumulate)
    components = make_components(config)
    state = jax.eval_shape(partial(make_state, config, components))
    constants = _constants(config)
    batch = parallel.batch_shape(config.batch_size, config.data.crop_size)
    step = partial(train_step, components=components, config=config, size=config.largest_reduced)
    compiled = parallel.compile(step)
    lowered = compiled.lower(state, batch, constants)
    platform = target.devices[0].platform
    operations = compiled.program(state, batch, constants).operations(platform=platform) / target.count
    options = compiler_options(platform)
    if platform == "gpu" and target.absent:
        # Kernels cannot be timed, and Triton's have no sizes that were not.
        options |= {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
    memory, traffic = _compile(lowered, options)
    chip = find_chip(target.kind)
    return Plan(
        name=name,
        target=target,
        config=config,
        memory=memory,
        fits=None if target.memory is None else memory.arguments is not None and memory.total <= target.memory,
        operations=operations,
        traffic=traffic,
        dollars=dollars if dollars is not None else chip and chip.dollars,
    )


def find_fitting(
    config: TrainConfig, target: Target, *, name: str = "", dollars: float | None = None, batch: bool = True
) -> Iterator[Plan]:
    """Yields plans that fit, starting with the rematerialisation of the settings and increasing it.

    Args:
      config: Settings of the run.
      target: Devices of known memory.
      name: Name of the plan; see `plan`.
      dollars: Price of one device per hour; see `plan`.
      batch: Whether the batch may change.  If so, yields the largest batch that fits for each rematerialisation; if
        not, stops at the first rematerialisation with which the batch fits, and after the last one divides the batch
        into more parts.

    Raises:
      TrainError: If the memory of the devices is unknown, as that of a CPU is.
    """
    if target.memory is None:
        raise TrainError(f"--fit needs the memory size of {target.name}, which is unknown; run without --fit")
    least = target.count // config.devices_per_image * config.optim.accumulate
    one = config
    for remat in REMAT[REMAT.index(config.remat) :]:
        one = replace(config, remat=remat)
        if batch:
            found = largest_batch(
                lambda n, one=one: plan(replace(one, batch_size=n * least), target, name=name, dollars=dollars)
            )
            if found is not None:
                yield found
        else:
            yield (found := plan(one, target, name=name, dollars=dollars))
            if found.fits:
                return
    if batch:
        return
    most = config.batch_size * config.devices_per_image // target.count
    for parts in range(config.optim.accumulate + 1, most + 1):
        # Few of them, because each is compiled: those that divide the share of a device, each at least half as large.
        if most % parts == 0 and parts >= 2 * one.optim.accumulate:
            one = replace(one, optim=replace(one.optim, accumulate=parts))
            yield (found := plan(one, target, name=name, dollars=dollars))
            if found.fits:
                return


def fitting(config: TrainConfig, target: Target) -> Plan:
    """Returns the plan with the least rematerialisation, and then the fewest parts of the batch, that fits.

    Args:
      config: Settings of the run.
      target: Devices.

    Raises:
      TrainError: If nothing fits, or the memory of the devices is unknown.
    """
    *_, last = find_fitting(config, target, batch=False)
    if not last.fits:
        settings, gib = last.config, 2**30
        raise TrainError(
            f"a step needs {last.memory.total / gib:.1f} GiB with remat={settings.remat!r} and "
            f"accumulate={settings.optim.accumulate}, and a device has {(target.memory or 0) / gib:.1f}; use smaller "
            "crops (--crop-size) or --dtype bfloat16"
        )
    return last


def largest_batch(plan_of: Callable[[int], Plan]) -> Plan | None:
    """Returns the plan of the largest batch that fits, or None if not even the smallest does.

    Memory grows nearly linearly, so two plans predict which number is worth compiling next.
    """
    best, low, high = plan_of(1), 1, None
    if not best.fits:
        return None
    totals = {1: best.memory.total}
    guess = 2
    while high is None or high - low > 1:
        found = plan_of(guess)
        totals[guess] = found.memory.total
        if found.fits:
            best, low = found, guess
        else:
            high = guess
        guess = _next(totals, found.target.memory or 0, low, high)
    return best


def _next(totals: dict[int, int], memory: int, low: int, high: int | None) -> int:
    """Returns where the line through the last two numbers meets the memory, between the known bounds."""
    one, other = sorted(totals)[-2:] if high is None else (low, high)
    each = max((totals[other] - totals[one]) / (other - one), 1.0)
    guess = one + int((memory - totals[one]) / each)
    # A line that extrapolates far from two points is checked halfway.
    return min(max(guess, low + 1), 8 * low if high is None else high - 1)


def _constants(config: TrainConfig) -> dict[str, Any]:
    if config.loss.features_weight:
        raise TrainError(
            f"loss.features_weight={config.loss.features_weight} needs a network of your own, whose memory is unknown; "
            "plan with 0"
        )
    if not config.loss.lpips_weight:
        return {}
    shapes = lpips_shapes(config.loss.lpips_net)
    return {"lpips": jax.tree.map(_float32, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))}


def _float32(shape: Sequence[int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), jnp.float32)


# Messages of the TPU compiler for a program that does not fit, with the amount that it needs at least.
_NEEDED = (
    re.compile(r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM"),
    re.compile(r"[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm"),
)


def bytes_needed(message: str) -> int | None:
    """Returns the bytes that a program needs, from the error of compiling it; None for other errors."""
    for pattern in _NEEDED:
        if found := pattern.search(message):
            return int(float(found[1]) * 2 ** (10 * (1 + "KMGT".index(found[2]))))
    return None


def _compile(lowered: Any, options: dict[str, Any]) -> tuple[Memory, float | None]:
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        total = bytes_needed(str(error))
        if total is None:
            raise
        return Memory(total), None
    found = compiled.memory_analysis()
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    memory = Memory(
        arguments=found.argument_size_in_bytes + new,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        total=found.argument_size_in_bytes + new + found.temp_size_in_bytes + found.generated_code_size_in_bytes,
    )
    return memory, (compiled.cost_analysis() or {}).get("bytes accessed")
