"""Estimates the memory of a run without compiling it: its arrays, and what the forward pass keeps for the backward one.

The compiled program needs more: workspace, and what exists only within the losses or the discriminator.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flax_vae.train.build import make_components, make_state
from flax_vae.train.config import TrainConfig
from flax_vae.train.devices import Parallel
from flax_vae.train.errors import TrainError
from flax_vae.train.gradients import kept_for_backward
from flax_vae.train.state import trained_part

_GIB = 2**30


def memory_rows(config: TrainConfig, parallel: Parallel, constants: Any) -> dict[str, int]:
    """Returns the bytes on one device of each part of a run.

    Args:
      config: Settings of the run.
      parallel: Devices.
      constants: Constants of the losses, or their shapes; see `flax_vae.train.build.make_constants`.
    """
    components = make_components(config)
    state = jax.eval_shape(partial(make_state, config, components))
    places, count = parallel.shardings(state), len(parallel.devices)
    rows = {
        "weights": _bytes(state.params, places.params),
        "gradients": _bytes(trained_part(state.params, config.trained)),
        "optimiser": _bytes(state.opt_state, places.opt_state),
    }
    if state.ema is not None:
        rows["average"] = _bytes(state.ema, places.ema)
    if state.discriminator is not None:
        # The discriminator's gradients too.
        rows["discriminator"] = _bytes(state.discriminator, places.discriminator) + _bytes(state.discriminator.params)
    rows |= {constant_name(name): _bytes(tree) for name, tree in constants.items()}
    rows["images"] = 4 * 3 * config.data.crop_size**2 * config.batch_size // count

    size, part = config.data.crop_size, config.batch_size // config.optim.accumulate
    images = jax.ShapeDtypeStruct((part, size, size, config.model.out_ch), jnp.float32)
    kept = partial(kept_for_backward, model=components.model, discriminator=components.discriminator, config=config)
    rows["activations"] = _bytes(jax.eval_shape(kept, state, images, constants)) // count
    return rows


def constant_name(constant: str) -> str:
    """Returns what a constant of the losses is called."""
    return {"lpips": "LPIPS"}.get(constant, constant)


def require_memory(config: TrainConfig, parallel: Parallel, constants: Any) -> None:
    """Refuses a run that cannot fit on the devices here, before its step is compiled.

    Checks nothing where the memory of a device is not known, as on a CPU.

    Args:
      config: Settings of the run.
      parallel: Devices of the run.
      constants: Arrays that the step takes beside state and batch.

    Raises:
      TrainError: If the arrays of the run alone are larger than the memory of a device.
    """
    limit = memory_limit(parallel)
    if limit is not None:
        require_room(memory_rows(config, parallel, constants), limit, config)


def memory_limit(parallel: Parallel) -> int | None:
    """Returns the bytes that JAX may use on each device here, or None if that is not known, as on a CPU."""
    limits = [int((device.memory_stats() or {}).get("bytes_limit") or 0) for device in parallel.local_devices]
    return min(limits, default=0) or None


def require_room(rows: dict[str, int], limit: int, config: TrainConfig) -> None:
    """Refuses a run whose parts are larger than the memory of a device.

    Args:
      rows: Result of `memory_rows`.
      limit: Bytes that a device has for the run.
      config: Settings of the run, for the message.

    Raises:
      TrainError: If they do not fit.
    """
    total = sum(rows.values())
    if total <= limit:
        return
    needed = f"{total / _GIB:.1f} GiB, {rows['activations'] / _GIB:.1f} of them activations"
    remedies = [] if config.dtype == "bfloat16" else ["--dtype bfloat16"]
    remedies += [] if config.remat == "blocks" else ["--remat blocks"]
    remedies += [f"more parts of the batch (--accumulate, now {config.optim.accumulate}), or a smaller batch"]
    raise TrainError(
        f"a step needs at least {needed}, and a device has {limit / _GIB:.1f}; use {', '.join(remedies)}; "
        "flax-vae-train recipes lists those for smaller devices",
        value=total,
    )


def _bytes(tree: Any, places: Any = None) -> int:
    """Returns the bytes of all leaves, or of one device's shards if shardings are given."""
    leaves = jax.tree.leaves(tree)
    shapes = [leaf.shape for leaf in leaves]
    if places is not None:
        shapes = [place.shard_shape(shape) for shape, place in zip(shapes, jax.tree.leaves(places), strict=True)]
    return sum(math.prod(shape) * leaf.dtype.itemsize for shape, leaf in zip(shapes, leaves, strict=True))
