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
    """Decodes the latents that flax-vae encode wrote to PNG files with the original names and sizes.

    If it is interrupted, run the same command again to resume.  Mirror images are left out.
    """

    source: Annotated[Positional[Path], arg(metavar="LATENTS")]
    """Folder that flax-vae encode wrote."""
    destination: Annotated[Positional[Path], arg(metavar="DST")]
    """Folder for the images."""
    model: Annotated[str, arg(metavar="MODEL")]
    """Model that encoded the latents; weights of any kind, as for flax-vae encode."""
    preset: Annotated[str | None, arg(metavar="P", help=PRESET_HELP, help_behavior_hint=_NONE)] = None
    raw_weights: FlagCreatePairsOff[bool] = False
    """Use the raw weights of a training checkpoint instead of their moving average, if it holds both."""
    other_model: FlagCreatePairsOff[bool] = False
    """Accept a model that did not encode these latents."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation dtype."""
    batch_size: Annotated[int, arg(metavar="N")] = 16
    """Number of latents in a batch, on all devices together."""
    max_pixels: Annotated[int, arg(metavar="N")] = 1 << 21
    """Maximum number of pixels in a batch; a larger image is decoded band by band."""
    compilation_cache: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint=_NONE)] = None
    """Folder for compiled programs, which later starts load instead of compiling."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command; see `flax_vae.cli.command.run_command`."""
    return run_command(PROG, DecodeFlags, _run, "resumes with the missing images", args)


def _run(flags: DecodeFlags) -> int:
    # These imports load JAX, so they come after the flags are checked.
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
    begun = "" if report.decoded else "already complete; "
    print(f"{begun}{report.images:,} images in {printable(flags.destination)}")
    return 0
