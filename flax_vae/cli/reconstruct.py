"""`flax-vae reconstruct`: original, reconstruction and difference of images, in one picture."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro
from tyro.conf import Positional, arg

from flax_vae.cli.command import PRESET_HELP
from flax_vae.convert.console import advise, parse_flags
from flax_vae.errors import UserError
from flax_vae.images import ADDRESSES

if TYPE_CHECKING:  # they load JAX and Pillow: not for --help
    from PIL.Image import Image

    from flax_vae import AutoEncoder
    from flax_vae.images import Comparison, ImageSource

PROG = "flax-vae reconstruct"


@dataclass(frozen=True)
class Reconstruct:
    """Draws images beside their reconstructions, and measures how close the two are.

    Every image is encoded to the mean of its posterior, decoded again, and compared in 8 bits.  The picture shows the
    original, the reconstruction, and their difference, amplified by the factor that is written above it.
    """

    images: Annotated[
        Positional[tuple[str, ...]],
        arg(metavar="IMAGES...", help=f"Images of any size: {ADDRESSES}.", help_behavior_hint="(required)"),
    ]
    model: Annotated[str, arg(metavar="MODEL")]
    """Weights: a model folder, a file, a checkpoint, or hf:org/name on the Hugging Face hub."""
    preset: Annotated[str | None, arg(metavar="P", help=PRESET_HELP, help_behavior_hint="(default: none)")] = None
    raw_weights: bool = False
    """Take the weights of a training checkpoint instead of their moving average, where it holds both."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: IMAGE.reconstruction.png, here)")] = (
        None
    )
    """A PNG for all images, one below the other, instead of one for each."""
    limit: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Number of images of each address, the first ones."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation dtype."""
    time: Annotated[float | None, arg(metavar="T", help_behavior_hint="(default: none)")] = None
    """The condition of a model that takes a time."""
    force: bool = False
    """Replace pictures that exist."""


def main(args: Sequence[str]) -> int:
    """Runs the command.

    Returns:
      The exit status 0.

    Raises:
      UserError, OSError: one sentence, for what the caller can put right.
      SystemExit: 2 for wrong flags, 0 after `--help`.
    """
    advise(PROG, "")
    flags = parse_flags(Reconstruct, prog=PROG, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    from flax_vae.convert.console import printable
    from flax_vae.images import WIDE, save_png, stack

    # Whatever can be refused without the model is refused before the model is loaded.
    entries = _open(flags)
    pictures = _pictures(entries, flags)
    for out in pictures:
        _check_out(out, flags)
    # They load JAX: only now, when there is something to compute.
    from flax_vae.conditioning import same_time
    from flax_vae.inference import load_model

    model, params = load_model(flags.model, flags.preset, flags.dtype, raw_weights=flags.raw_weights, rgb=True)
    same_time(1, flags.time, model.params)  # refuses a time that does not fit the model

    for out, shown in pictures.items():
        rows = []
        for entry in shown:
            comparison = _compare(entry, model, params, flags)
            rows.append(_draw(comparison, flags.model))
            print(f"{comparison.scores.name}: {_about(comparison, ', ')}", flush=True)
        save_png(out, stack(rows, WIDE), force=flags.force)
        print(f"picture: {printable(out)}", flush=True)
    return 0


class _Entry(NamedTuple):
    """One image of a source."""

    source: "ImageSource"
    index: int


def _open(flags: Reconstruct) -> list[_Entry]:
    """Returns all images, whose headers are sound."""
    from flax_vae.images import open_images, scan_images

    if not flags.images:
        raise UserError(f"no input images; pass one or more addresses, each {ADDRESSES}")
    if flags.limit is not None and flags.limit < 1:
        raise UserError(f"limit={flags.limit} must be at least 1")
    entries = []
    with _without_warnings():
        for address in flags.images:
            source = open_images(address)
            found = scan_images(source, range(len(source))[: flags.limit])
            found.require_sound()
            entries += [_Entry(source, index) for index in found.sizes]
    return entries


def _pictures(entries: list[_Entry], flags: Reconstruct) -> dict[Path, list[_Entry]]:
    """Returns the images that each file is to show."""
    if flags.out is not None:
        return {flags.out: entries}
    outs = {
        Path(f"{Path(source.name(index)).stem}.reconstruction.png"): [_Entry(source, index)]
        for source, index in entries
    }
    if len(outs) < len(entries):
        raise UserError("two of the images have one name; name one picture for all of them with --out")
    return outs


def _check_out(out: Path, flags: Reconstruct) -> None:
    from flax_vae.convert.console import printable

    name = printable(out)
    if out.is_dir():
        raise UserError(f"{name} is a folder; name a PNG file in it")
    if out.suffix.lower() != ".png":
        raise UserError(f"{name} does not end in .png, and pictures are PNG files; choose such a name with --out")
    if out.exists():
        if any(out.samefile(address) for address in flags.images if os.path.exists(address)):
            raise UserError(f"{name} is one of the images; choose another name with --out")
        if not flags.force:
            raise UserError(f"{name} exists already; replace it with --force, or choose another name with --out")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    by_whom = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK, **by_whom):
        raise UserError(f"{printable(folder)} is no folder that takes {name}; choose another place with --out")


def _compare(entry: _Entry, model: "AutoEncoder", params: Any, flags: Reconstruct) -> "Comparison":
    import jax
    import numpy as np

    from flax_vae.images import compare_images, to_uint8
    from flax_vae.inference import needs_bands, reconstruct

    name = entry.source.label(entry.index)
    too_large = f"{name} is too large for the memory of this machine; make it smaller, or try --dtype bfloat16"
    try:
        with _without_warnings():
            image = entry.source[entry.index]
        height, width, _ = image.shape
        in_bands = needs_bands(model.params, height, width, flags.dtype)
        made = reconstruct(model, params, image[None], flags.time, in_bands=in_bands).images[0]
    except MemoryError as error:
        raise UserError(too_large) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(too_large) from error
    if not np.isfinite(made).all():
        raise UserError(
            f"what {flags.model} makes of {name} is not finite in {flags.dtype}; expected finite numbers: use --dtype "
            "float32, or other weights"
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


@contextmanager
def _without_warnings() -> Iterator[None]:
    """For the time of reading, in one thread: what Pillow puts up with, it remarks on; bombs are refused anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
