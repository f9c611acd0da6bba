"""Writes pictures that compare images with their reconstructions, and reads the images in them."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flax_vae.convert.files import read_at
from flax_vae.images import PANELS, Comparison, PanelLayout, draw_comparison, draw_pair, save_png, stack
from flax_vae.train.errors import RunError

_LAYOUT = PanelLayout()
AMPLIFIED = 4  # makes small differences visible; equal for all images, so that they can be compared


def save_comparisons(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes a row per image, under its name and scores: original, reconstruction and difference.

    The difference is absolute per channel and four times as bright.

    Args:
      path: Path of the PNG file, which is replaced.
      comparisons: Images and their reconstructions.
    """
    rows = []
    for comparison in comparisons:
        caption = "   ".join([comparison.scores.name, *comparison.scores.in_words()])
        rows.append(draw_comparison(comparison, [caption], amplified=AMPLIFIED, layout=_LAYOUT))
    save_png(path, stack(rows, _LAYOUT), force=True)


def save_components(
    path: Path, rows: Sequence[tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h2 w2 3"]]]
) -> None:
    """Writes a row per image, under its name: the image, and its latents in colours, enlarged to the image's size.

    Args:
      path: PNG file.
      rows: Name of each image, the image, and the latents, as `flax_vae.train.evaluation.PrincipalComponents` draws
        them.
    """
    pictures = [draw_pair(image, latents, name, layout=_LAYOUT) for name, image, latents in rows]
    save_png(path, stack(pictures, _LAYOUT), force=True)


class Reconstructed(NamedTuple):
    """One row of a picture of `save_comparisons`.

    Attributes:
      name: Name of the image; empty if the picture does not tell it.
      scores: Scores as text, each with its name.
      original: The image as drawn, as a PNG file; empty if the picture does not tell where it is.
      reconstruction: Reconstruction as drawn, or the whole picture if that does not tell where it is.
      difference: Difference as drawn; empty if the picture does not tell where it is.
    """

    name: str
    scores: list[str]
    original: bytes
    reconstruction: bytes
    difference: bytes = b""


def read_comparisons(path: Path) -> list[Reconstructed]:
    """Returns the rows of a picture of `save_comparisons`; one of an earlier version is returned whole.

    Raises:
      RunError: If the file cannot be read.
    """
    try:
        content = read_at(path)
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            return _rows(picture) or [Reconstructed("", [], b"", content)]
    except (OSError, SyntaxError, ValueError) as error:  # of Pillow, for another file
        raise RunError(f"{path} cannot be read ({error}); remove it", path=path) from error


def _rows(picture: Image.Image) -> list[Reconstructed]:
    try:
        panels = json.loads(picture.info[PANELS])
        rows = [(str(one["name"]), list(map(str, one["scores"])), one["boxes"][:3]) for one in panels]
        return [Reconstructed(name, scores, *(_cut(picture, box) for box in boxes)) for name, scores, boxes in rows]
    except (KeyError, TypeError, ValueError):
        return []


def _cut(picture: Image.Image, box: Sequence[int]) -> bytes:
    left, top, right, bottom = box
    if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
        raise ValueError("the box is outside of the picture")
    file = io.BytesIO()
    picture.crop((left, top, right, bottom)).save(file, format="PNG")
    return file.getvalue()
