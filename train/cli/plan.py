"""`flax-vae-train plan`: what a run would take on devices that need not be here."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from flax_vae.convert.console import escaped_output, parse_flags
from flax_vae.train.cli.flags import Flags, rename_flags
from flax_vae.train.errors import TrainError

if TYPE_CHECKING:
    from flax_vae.train.config import TrainConfig
    from flax_vae.train.plan import Target

PROG = "flax-vae-train plan"
_RECIPE = "(default: the preset's own)"


@dataclass(frozen=True)
class PlanFlags:
    """Compiles the step of a run for devices that need not be here, and prints the memory, the work and the time.

    It is the very step that the run would compile, for as many hosts as the devices have.  Nothing is read or written.
    For TPUs that is done by the extra tpu, on any Linux machine; without --topology it is for the devices here.
    """

    topology: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(metavar="vN:AxB", help_behavior_hint="(repeatable; default: what is here)"),
    ] = ()
    """A slice of TPUs, such as v5e:2x2, v5e:4x4 (four hosts), v4:2x2x2, v5p:2x2x1 or v6e:2x2."""
    fit: FlagCreatePairsOff[bool] = False
    """Find what fits: with --batch-size the least rematerialisation, otherwise the largest batch for each."""
    dollars: Annotated[float | None, arg(metavar="X", help_behavior_hint="(default: the published price)")] = None
    """An hour of one device."""
    markdown: FlagCreatePairsOff[bool] = False
    """Print the table as GitHub Markdown."""
    preset: Annotated[str | None, arg(metavar="P", help_behavior_hint="(default: tiny)")] = None
    """Which architecture, and the recipe that it is trained by."""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Settings as YAML or JSON, as for a run."""
    settings: Annotated[
        UseAppendAction[tuple[str, ...]], arg(name="set", metavar="NAME=VALUE", help_behavior_hint="(repeatable)")
    ] = ()
    """Any setting by its name in config.json, such as gan.weight=0.5."""
    parallel: Annotated[
        Literal["pmap", "mesh"] | None, arg(metavar="pmap|mesh", help_behavior_hint="(default: pmap)")
    ] = None
    """How the step is compiled for all devices."""
    zero: FlagCreatePairsOff[bool] = False
    """Share out the optimisers' states and the average over the devices; needs --parallel mesh."""
    devices_per_image: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1)")] = None
    """Devices that share the rows of each image; needs --parallel mesh."""
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, arg(metavar="float32|bfloat16", help_behavior_hint=_RECIPE)
    ] = None
    """Of the computation."""
    remat: Annotated[
        Literal["none", "attention", "blocks"] | None,
        arg(metavar="none|attention|blocks", help_behavior_hint=_RECIPE),
    ] = None
    """What the backward pass computes again instead of keeping."""
    crop_size: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Side of the crops in pixels."""
    batch_size: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Crops per update, over all devices together."""
    accumulate: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Parts that a batch is computed in, one after the other."""


@escaped_output()
def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
      The exit status: 0, or 1 for what the caller can put right or where nothing fits; wrong flags end in status 2.
    """
    flags = parse_flags(PlanFlags, prog=PROG, args=rename_flags(sys.argv[1:] if args is None else args))
    try:
        return _run(flags)
    except (TrainError, ValueError, OSError) as error:
        print(f"{PROG}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _run(flags: PlanFlags) -> int:
    config = _config(flags)
    import jax  # not for --help, nor for settings that are wrong

    from flax_vae.ops import require_devices
    from flax_vae.train.plan import LEGEND, find_fitting, local, plan, rows, topology

    if flags.topology:
        jax.config.update("jax_platforms", "cpu")  # what is here does not matter, and may be in use
    else:
        require_devices()
    plans, fitting = [], True
    for target in [topology(name) for name in flags.topology] or [local()]:
        settings = {"name": flags.preset or (flags.config.stem if flags.config else "tiny"), "dollars": flags.dollars}
        if flags.fit:
            _require_memory(target)
            found = find_fitting(config, target, batch=flags.batch_size is None, **settings)
        else:
            found = [plan(config, target, **settings)]
        fits = False
        for one in found:
            used = f"{one.memory.total / 2**30:.1f} GiB" + (", which does not fit" if one.fits is False else "")
            print(f"{target.name}, batch {one.config.batch_size}, remat {one.config.remat}: {used}", file=sys.stderr)
            plans.append(one)
            fits = one.fits is not False
        fitting &= fits
    print(*rows(plans, markdown=flags.markdown), "", LEGEND, sep="\n")
    return 0 if fitting else 1


def _config(flags: PlanFlags) -> "TrainConfig":
    """The run that is meant, whose weights and images are not read."""
    from flax_vae.train.cli.resolve import resolve  # loads NumPy: not for --help

    shared = {field.name for field in fields(Flags)} & {field.name for field in fields(PlanFlags)}
    given = {name: getattr(flags, name) for name in shared}
    # Some recipes go on from weights, and ask for them.
    start = None if flags.preset is None else "weights"
    return resolve(Flags(**given, start_from=start), None)


def _require_memory(target: "Target") -> None:
    if target.memory is None:
        raise TrainError(
            f"nobody says how much memory {target.name} has, so nothing can be fitted to it; leave out --fit"
        )
