"""`flax-vae decode`: latents back to images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from flax_vae.cli.command import ComputeFlags, ModelFlags, run_command
from flax_vae.convert.console import Section

PROG = "flax-vae decode"


@dataclass(frozen=True)
class DecoderFlags(ModelFlags):
    """The autoencoder that encoded the latents."""

    other_model: bool = False
    """Accept a model that did not encode these latents."""


@dataclass(frozen=True)
class DecodeFlags:
    """Decodes the latents that flax-vae encode wrote to PNG files with the original names and sizes.

    If it is interrupted, run the same command again to resume.  Mirror images are left out.
    """

    source: Annotated[Positional[str], arg(metavar="LATENTS")]
    """Folder that flax-vae encode wrote, or its address in a bucket."""
    destination: Annotated[Positional[str], arg(metavar="DST")]
    """Folder for the images, or its address in a bucket."""
    model: Section[DecoderFlags]
    compute: Section[ComputeFlags] = ComputeFlags()


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command; see `flax_vae.cli.command.run_command`."""
    return run_command(PROG, DecodeFlags, _run, "resumes with the missing images", args)


def _run(flags: DecodeFlags) -> int:
    # These imports load JAX, so they come after the flags are checked.
    from flax_vae.convert.console import printable
    from flax_vae.folders import BatchLimits, decode_folder

    flags.compute.prepare()
    grouping = BatchLimits(flags.compute.batch_size, flags.compute.max_pixels)
    report = decode_folder(
        flags.source, flags.destination, *flags.model.load(), grouping, other_model=flags.model.other_model
    )
    if report.decoded:
        speed = report.decoded / report.seconds
        print(f"{report.decoded:,} images in {report.seconds:.1f} s, {speed:.3g} images/s")
    begun = "" if report.decoded else "already complete; "
    print(f"{begun}{report.images:,} images in {printable(flags.destination)}")
    return 0
