"""`flax-vae reconstruct`: draws original, reconstruction and difference of images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from tyro.conf import Positional, arg

from flax_vae.cli.command import CacheFlags, TimedModelFlags, run_command
from flax_vae.convert.console import Section
from flax_vae.errors import UserError
from flax_vae.images import ADDRESSES

if TYPE_CHECKING:  # load JAX and Pillow, which --help must not
    from PIL.Image import Image

    from flax_vae.autoencoder import Model
    from flax_vae.images import Comparison, ImageSource

PROG = "flax-vae reconstruct"


@dataclass(frozen=True)
class PictureFlags:
    """What is drawn, and where."""

    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Number of images to take from each address, the first ones."""
    out: Annotated[
        Path | None, arg(metavar="FILE", help_behavior_hint="(default: IMAGE.reconstruction.png in the current folder)")
    ] = None
    """PNG file for all images, stacked, instead of one file each."""
    force: bool = False
    """Replace existing files."""


@dataclass(frozen=True)
class Reconstruct:
    """Draws images beside their reconstructions, and prints their scores.

    Each image is encoded to the mean of its posterior, decoded, and compared in 8 bits.  The picture shows the
    original, the reconstruction, and their difference, amplified by the factor written above it.
    """

    images: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="IMAGES...", help=f"Images of any size: {ADDRESSES}.", help_behavior_hint="(required)"),
    ]
    model: Section[TimedModelFlags]
    output: Section[PictureFlags] = PictureFlags()
    compute: Section[CacheFlags] = CacheFlags()


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command; see `flax_vae.cli.command.run_command`."""
    return run_command(PROG, Reconstruct, _run, "", args)


def _run(flags: Reconstruct) -> int:
    from flax_vae.convert.console import printable
    from flax_vae.images import WIDE, save_png, stack

    # Check everything that needs no model before loading it.
    entries = _open(flags)
    pictures = _pictures(entries, flags)
    for out in pictures:
        _check_out(out, flags)
    # These imports load JAX, so they come after the flags are checked.
    from flax_vae.conditioning import same_time

    flags.compute.prepare()
    model, params = flags.model.load(rgb=True)
    same_time(1, flags.model.time, model.params)  # raises if the time does not fit the model

    for out, shown in pictures.items():
        rows = []
        for entry in shown:
            comparison = _compare(entry, model, params, flags)
            rows.append(_draw(comparison, flags.model.model))
            print(f"{comparison.scores.name}: {_about(comparison, ', ')}", flush=True)
        save_png(out, stack(rows, WIDE), force=flags.output.force)
        print(f"picture: {printable(out)}", flush=True)
    return 0


class _Entry(NamedTuple):
    """Image of a source."""

    source: "ImageSource"
    index: int


def _open(flags: Reconstruct) -> list[_Entry]:
    """Returns all images, after checking their headers."""
    from flax_vae.images import open_images, scan_images

    if not flags.images:
        raise UserError(f"no input images; pass one or more addresses, each {ADDRESSES}")
    if flags.output.limit is not None and flags.output.limit < 1:
        raise UserError(f"limit={flags.output.limit} must be at least 1")
    entries = []
    for address in flags.images:
        source = open_images(address)
        found = scan_images(source, range(len(source))[: flags.output.limit])
        found.require_sound()
        entries += [_Entry(source, index) for index in found.sizes]
    return entries


def _pictures(entries: list[_Entry], flags: Reconstruct) -> dict[Path, list[_Entry]]:
    """Returns the images to draw into each file."""
    if flags.output.out is not None:
        return {flags.output.out: entries}
    outs = {
        Path(f"{Path(source.name(index)).stem}.reconstruction.png"): [_Entry(source, index)]
        for source, index in entries
    }
    if len(outs) < len(entries):
        raise UserError("two of the images have an equal name; write all of them to one file with --out")
    return outs


def _check_out(out: Path, flags: Reconstruct) -> None:
    from flax_vae.convert.console import printable

    name = printable(out)
    if out.is_dir():
        raise UserError(f"{name} is a folder; pass a PNG file in it")
    if out.suffix.lower() != ".png":
        raise UserError(f"{name} does not end in .png; choose such a name with --out")
    if out.exists():
        if any(out.samefile(address) for address in flags.images if os.path.exists(address)):
            raise UserError(f"{name} is one of the input images; choose another name with --out")
        if not flags.output.force:
            raise UserError(f"{name} exists; replace it with --force, or choose another name with --out")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    by_whom = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK, **by_whom):
        raise UserError(f"{printable(folder)} is not a writable folder for {name}; choose another with --out")


def _compare(entry: _Entry, model: "Model", params: Any, flags: Reconstruct) -> "Comparison":
    import jax
    import numpy as np

    from flax_vae.images import compare_images, to_uint8
    from flax_vae.inference import needs_bands, reconstruct

    name = entry.source.printable_name(entry.index)
    too_large = f"{name} is too large for the memory of this machine; make it smaller, or try --dtype bfloat16"
    try:
        image = entry.source[entry.index]
        height, width, _ = image.shape
        in_bands = needs_bands(model.params, height, width, flags.model.dtype)
        made = reconstruct(model, params, image[None], flags.model.time, in_bands=in_bands).images[0]
    except MemoryError as error:
        raise UserError(too_large) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(too_large) from error
    if not np.isfinite(made).all():
        raise UserError(
            f"the reconstruction of {name} by {flags.model.model} is not finite in {flags.model.dtype}; expected "
            "finite numbers: use --dtype float32, or other weights"
        )
    return compare_images(name, image, to_uint8(made))


def _draw(comparison: "Comparison", model: str) -> "Image":
    from flax_vae.images import WIDE, draw_comparison, visible_factor

    factor = visible_factor(comparison)
    longest = max(comparison.original.shape)
    captions = [Path(comparison.scores.name).name, _about(comparison, "    "), f"model {model}"]
    if longest > WIDE.largest:
        captions[1] += f"    drawn at {WIDE.largest / longest:.0%} of its size"
    labels = ["original", "reconstruction", f"difference, {factor} times as bright" if factor > 1 else "difference"]
    return draw_comparison(comparison, captions, labels, amplified=factor, layout=WIDE)


def _about(comparison: "Comparison", between: str) -> str:
    scores = comparison.scores
    return between.join([f"{scores.width} wide, {scores.height} high", *scores.in_words()])
