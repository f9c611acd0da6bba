"""`flax-vae-train plan`: estimates memory, step time and cost on hardware that you do not have."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import UseAppendAction, arg

from flax_vae.convert.console import Section, escaped_output, guard
from flax_vae.train.cli.flags import Flags, RecipeFlags, RunFlags, parse_run_flags

if TYPE_CHECKING:
    from flax_vae.train.config import TrainConfig

PROG = "flax-vae-train plan"


@dataclass(frozen=True)
class EstimateFlags:
    """What is estimated."""

    topology: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="NAME", help_behavior_hint="(repeatable; default: this machine)"),
    ] = ()
    """Slice of TPUs, such as v5e:2x2, v5e:4x4 (four hosts), v4:2x2x2, v5p:2x2x1 or v6e:2x2; or one GPU: gpu-16gb,
    gpu-24gb or gpu-80gb, without the scratch memory of its kernels."""
    fit: bool = False
    """Find settings that fit: with --batch-size the least rematerialisation, and then the fewest parts of the batch;
    otherwise the largest batch for each rematerialisation."""
    dollars: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: the published price)")] = None
    """Price of one device per hour."""
    markdown: bool = False
    """Print the table as GitHub Markdown."""


@dataclass(frozen=True)
class PlanFlags:
    """Estimates memory, step time and cost of a run on hardware that you do not have, by compiling its step.

    Compiles the same step as the run, for all hosts of the devices.  Reads and writes no files.  The extras tpu and
    cuda12 compile for TPUs and GPUs on any Linux machine; without --topology, the devices of this machine are used.
    """

    estimate: Section[EstimateFlags] = EstimateFlags()
    run: Section[RecipeFlags] = RecipeFlags()
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that were given by flags, nested as in config.json."""


@escaped_output()
def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
      Exit code: 0; or 1 for an error that the user can fix, or if nothing fits.
    """
    return guard(PROG, lambda: _run(parse_run_flags(PlanFlags, prog=PROG, args=args)))


def _run(flags: PlanFlags) -> int:
    config = _config(flags)
    import jax  # not for --help, nor for settings that are wrong

    from flax_vae.ops import require_devices
    from flax_vae.train.plan import LEGEND, find_fitting, local, plan, rows, topology

    if flags.estimate.topology:
        jax.config.update("jax_platforms", "cpu")  # the devices of this machine may be in use
    else:
        require_devices()
    plans, fitting = [], True
    for target in [topology(name) for name in flags.estimate.topology] or [local()]:
        settings = {
            "name": flags.run.preset or (flags.run.config.stem if flags.run.config else "tiny"),
            "dollars": flags.estimate.dollars,
        }
        if flags.estimate.fit:
            found = find_fitting(config, target, batch="batch_size" not in flags.settings, **settings)
        else:
            found = [plan(config, target, **settings)]
        fits = False
        for one in found:
            used = f"{one.memory.total / 2**30:.1f} GiB" + (", which does not fit" if one.fits is False else "")
            print(f"{target.name}, batch {one.config.batch_size}, remat {one.config.remat}: {used}", file=sys.stderr)
            plans.append(one)
            fits = one.fits is not False
        fitting &= fits
    print(*rows(plans, markdown=flags.estimate.markdown), "", LEGEND, sep="\n")
    return 0 if fitting else 1


def _config(flags: PlanFlags) -> "TrainConfig":
    """Returns the settings of the run, without reading its weights and images."""
    from flax_vae.train.cli.resolve import resolve  # loads NumPy: not for --help
    from flax_vae.train.cli.settings_file import read_settings

    settings = flags.settings
    file = {} if flags.run.config is None else read_settings(flags.run.config)
    if flags.run.preset is not None and not {"teacher", "start_from"} & {*settings, *file}:
        settings = {"start_from": "weights", **settings}  # which some recipes require
    return resolve(Flags(RunFlags(flags.run.preset, flags.run.config), settings=settings), None)
