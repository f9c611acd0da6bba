"""`flax-vae decode`: latents back to images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from flax_vae.cli.command import PRESET_HELP, run_command

PROG = "flax-vae decode"
_NONE = "(default: none)"


@dataclass(frozen=True)
class DecodeFlags:
    """Decodes the latents that flax-vae encode wrote, to PNGs of the old names and sizes.

    What was interrupted goes on when the same command is given again.  Mirror images are passed over.
    """

    source: Annotated[Positional[Path], arg(metavar="LATENTS")]
    """The folder that flax-vae encode wrote."""
    destination: Annotated[Positional[Path], arg(metavar="DST")]
    """The folder for the images."""
    model: Annotated[str, arg(metavar="MODEL")]
    """The model that encoded them; weights of any kind."""
    preset: Annotated[str | None, arg(metavar="P", help=PRESET_HELP, help_behavior_hint=_NONE)] = None
    raw_weights: FlagCreatePairsOff[bool] = False
    """Take the weights of a training checkpoint instead of their moving average, where it holds both."""
    other_model: FlagCreatePairsOff[bool] = False
    """Decode with a model that did not encode these latents."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation dtype."""
    batch_size: Annotated[int, arg(metavar="N")] = 16
    """Latents at a time, on all devices together."""
    max_pixels: Annotated[int, arg(metavar="N")] = 1 << 21
    """Pixels of a batch together; a larger image is decoded band by band."""
    compilation_cache: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint=_NONE)] = None
    """Where compiled programs are kept, so that the next start need not compile them."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command; see `flax_vae.cli.command.run_command`."""
    return run_command(PROG, DecodeFlags, _run, "goes on with the images that are missing", args)


def _run(flags: DecodeFlags) -> int:
    # They load JAX: only now, when there is something to compute.
    from flax_vae.convert.console import printable
    from flax_vae.folders import BatchLimits, decode_folder
    from flax_vae.inference import load_model
    from flax_vae.ops import cache_compilations

    if flags.compilation_cache is not None:
        cache_compilations(flags.compilation_cache)
    grouping = BatchLimits(flags.batch_size, flags.max_pixels)
    model, params = load_model(flags.model, flags.preset, flags.dtype, raw_weights=flags.raw_weights)
    report = decode_folder(flags.source, flags.destination, model, params, grouping, other_model=flags.other_model)
    if report.decoded:
        speed = report.decoded / report.seconds
        print(f"{report.decoded:,} images in {report.seconds:.1f} s, {speed:.3g} images/s")
    begun = "" if report.decoded else "nothing was left to do; "
    print(f"{begun}{report.images:,} images in {printable(flags.destination)}")
    return 0
