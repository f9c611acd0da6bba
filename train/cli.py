"""`flax-vae-train`: flags in, one run; what a person can put right ends in one line on standard error."""

import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import arg

from train.config import TrainConfig
from train.errors import TrainError
from train.recipes import recipe

_RECIPE = "(default: the preset's own)"


@dataclass(frozen=True)
class Flags:
    """Trains an image autoencoder on photographs and exports it as a model folder.

    Without arguments: the preset `tiny`, on the photographs that the package ships, in a few minutes on two CPU cores.
    A run that was interrupted goes on where it was: start it again with the same --workdir.
    """

    preset: Annotated[str | None, arg(metavar="P", help_behavior_hint="(default: tiny)")] = None
    """Which architecture, and the recipe that it is trained by."""
    workdir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/P)")] = None
    """The run directory; a run that was begun there goes on, with its own settings where no flag is given."""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Updates of the whole run."""
    seed: Annotated[int | None, arg(metavar="S", help_behavior_hint="(default: 0)")] = None
    """Of the initial weights, the crops and the noise."""
    parallel: Annotated[
        Literal["pmap", "mesh"] | None, arg(metavar="pmap|mesh", help_behavior_hint="(default: pmap)")
    ] = None
    """How the step is compiled for all local devices."""
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        arg(metavar="float32|bfloat16", help_behavior_hint="(default: float32)"),
    ] = None
    """Of the computation; parameters and statistics stay float32."""
    remat: Annotated[
        Literal["none", "attention", "blocks"] | None,
        arg(metavar="none|attention|blocks", help_behavior_hint="(default: none)"),
    ] = None
    """What the backward pass computes again instead of keeping: less memory, more time."""
    compilation_cache: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: none)")] = None
    """Where compiled programs are kept, so that the next run with the same settings starts at once."""
    data: Annotated[str | None, arg(metavar="FOLDER", help_behavior_hint="(default: the shipped photographs)")] = None
    """A folder of images, searched recursively; the last by name is held out."""
    held_out: Annotated[str | None, arg(metavar="PATH", help_behavior_hint="(default: the last by name)")] = None
    """The image of that folder to hold out instead."""
    crop_size: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Side of the random crops in pixels."""
    batch_size: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Crops per update, over all devices together."""
    learning_rate: Annotated[float | None, arg(metavar="X", help_behavior_hint=_RECIPE)] = None
    """Peak of the schedule."""
    warmup_steps: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Updates until the peak."""
    kl_weight: Annotated[float | None, arg(metavar="X", help_behavior_hint=_RECIPE)] = None
    """Weight of the KL divergence in the loss."""
    log_every: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Updates between two lines of metrics.jsonl."""
    eval_every: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Updates between two looks at the held-out photograph."""
    save_every: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Updates between two checkpoints."""


# Where each flag that changes the configuration belongs.
_OWNERS: dict[str, tuple[str, ...]] = {
    "": ("steps", "seed", "parallel", "dtype", "remat", "batch_size", "log_every", "eval_every", "save_every"),
    "data": ("held_out", "crop_size"),
    "optim": ("learning_rate", "warmup_steps"),
    "loss": ("kl_weight",),
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
      The exit status: 0 when the run is complete, 1 for what the caller can put right, 128 + n when stopped by signal
      n; wrong flags end in status 2.
    """
    flags = tyro.cli(Flags, prog="flax-vae-train", args=args)
    workdir = flags.workdir or Path("runs") / (flags.preset or "tiny")
    try:
        config = resolve(flags, workdir)
    except (TrainError, ValueError) as error:
        return _refuse(error)
    try:
        return _run(config, workdir, flags.compilation_cache)
    except TrainError as error:
        return _refuse(error)
    except KeyboardInterrupt:  # twice, or before there was anything to save
        print("flax-vae-train: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(config: TrainConfig, workdir: Path, compilation_cache: Path | None) -> int:
    begun = time.monotonic()
    from flax_vae.compilation import cache_compilations  # loads JAX: only now, when there is something to compute
    from train.loop import train

    if compilation_cache is not None:
        cache_compilations(compilation_cache)

    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax's notes to its own developers
    outcome = train(config, workdir)
    if outcome.stopped_by is not None:
        print(f"stopped after step {outcome.step} of {config.steps}; the same command goes on from there")
        return 128 + outcome.stopped_by
    print(
        f"held-out photograph, 64 x 64 tiles: PSNR {outcome.scores['psnr']:.2f} dB, SSIM {outcome.scores['ssim']:.3f}; "
        f"model in {workdir / 'export'} ({time.monotonic() - begun:.0f} s)"
    )
    return 0


def _refuse(error: Exception) -> int:
    print(f"flax-vae-train: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


def resolve(flags: Flags, workdir: Path) -> TrainConfig:
    """The run that the flags ask for: over the one begun in `workdir`, or else over the preset's recipe.

    Raises:
      TrainError: if the directory holds something else.
      ValueError: if a flag's value is out of range.
    """
    from train.run_directory import RunDirectory  # loads NumPy: not for --help

    stored = RunDirectory(workdir).stored_config()
    config = stored if stored is not None else recipe(flags.preset or "tiny")
    if stored is not None and flags.preset is not None:
        config = replace(config, model=recipe(flags.preset).model)
    if flags.data is not None:
        config = replace(config, data=replace(config.data, folder=flags.data, held_out=None))
    for owner, names in _OWNERS.items():
        given: dict[str, Any] = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
        if given and owner:
            given = {owner: replace(getattr(config, owner), **given)}
        config = replace(config, **given)
    return config


if __name__ == "__main__":
    sys.exit(main())
