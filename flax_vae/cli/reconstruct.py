"""`flax-vae reconstruct`: an image, what a model makes of it, and their difference, in one picture."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from flax_vae.convert.console import advise, parse_flags
from flax_vae.errors import DataError, UserError

if TYPE_CHECKING:  # they load JAX and Pillow: not for --help
    from PIL.Image import Image

    from flax_vae import AutoEncoder
    from flax_vae.images import Comparison

PROG = "flax-vae reconstruct"


@dataclass(frozen=True)
class Reconstruct:
    """Draws images beside what a model makes of them, and says how close the two are.

    Every image is encoded to the mean of its posterior, decoded again, and compared in 8 bits.  The picture shows the
    original, the reconstruction, and their difference, so many times as bright as is written above it.
    """

    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE...", help_behavior_hint="(required)")]
    """Image files of any size."""
    model: Annotated[str, arg(metavar="MODEL")]
    """Weights: a model folder, a file, a checkpoint, or hf:org/name on the Hugging Face hub."""
    preset: Annotated[str | None, arg(metavar="P", help_behavior_hint="(default: none)")] = None
    """The architecture, where nothing beside the weights says it."""
    raw_weights: bool = False
    """Of a checkpoint of training that holds both, take the weights themselves instead of their moving average."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: IMAGE.reconstruction.png, here)")] = (
        None
    )
    """A PNG for all images, one below the other, instead of one for each."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic."""
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

    # All that can be refused without the model, before it takes its time.
    pictures = _pictures(flags)
    for path in flags.images:
        _check_image(path)
    for out in pictures:
        _check_out(out, flags)
    model, params = _load(flags)

    for out, paths in pictures.items():
        rows = []
        for path in paths:
            comparison = _compare(path, model, params, flags)
            rows.append(_draw(comparison, flags.model))
            print(f"{comparison.scores.name}: {_about(comparison, ', ')}", flush=True)
        save_png(out, stack(rows, WIDE), force=flags.force)
        print(f"picture: {printable(out)}", flush=True)
    return 0


def _pictures(flags: Reconstruct) -> dict[Path, tuple[Path, ...]]:
    """What is to be written, and the images that it shows."""
    if not flags.images:
        raise UserError("no image is named; give one or several files")
    if flags.out is not None:
        return {flags.out: flags.images}
    outs = {Path(f"{path.stem}.reconstruction.png"): (path,) for path in flags.images}
    if len(outs) < len(flags.images):
        raise UserError("two of the images have one name; name one picture for all of them with --out")
    return outs


def _check_image(path: Path) -> None:
    from flax_vae.convert.console import printable
    from flax_vae.images import image_size

    if path.is_dir():
        raise DataError(f"{printable(path)} is a folder; name the image files in it")
    if not path.exists():
        raise DataError(f"{printable(path)} does not exist; name an image file")
    with _without_warnings():
        image_size(path)


def _check_out(out: Path, flags: Reconstruct) -> None:
    from flax_vae.convert.console import printable

    name = printable(out)
    if out.is_dir():
        raise UserError(f"{name} is a folder; name a PNG file in it")
    if out.suffix.lower() != ".png":
        raise UserError(f"{name} does not end in .png, and pictures are PNG files; choose such a name with --out")
    if out.exists():
        if any(out.samefile(image) for image in flags.images):
            raise UserError(f"{name} is one of the images; choose another name with --out")
        if not flags.force:
            raise UserError(f"{name} exists already; replace it with --force, or choose another name with --out")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    by_whom = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK, **by_whom):
        raise UserError(f"{printable(folder)} is no folder that takes {name}; choose another place with --out")


def _load(flags: Reconstruct) -> "tuple[AutoEncoder, Any]":
    from flax_vae.conditioning import same_time
    from flax_vae.inference import check_rgb, load_model

    model, params = load_model(flags.model, flags.preset, flags.dtype, raw_weights=flags.raw_weights)
    check_rgb(model.params, flags.model)
    same_time(1, flags.time, model.params)
    return model, params


def _compare(path: Path, model: "AutoEncoder", params: Any, flags: Reconstruct) -> "Comparison":
    import jax
    import numpy as np

    from flax_vae.convert.console import printable
    from flax_vae.images import compare_images, read_image, to_uint8
    from flax_vae.inference import needs_bands, reconstruct

    name = printable(path)
    too_large = f"{name} is too large for the memory of this machine; make it smaller, or try --dtype bfloat16"
    try:
        with _without_warnings():
            image = read_image(path)
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
