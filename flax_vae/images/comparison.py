"""Draws original, reconstruction and difference side by side, with scores above them."""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from flax_vae.convert.files import atomic_file, create_at, is_address, write_at
from flax_vae.images.scores import Comparison

PANELS = "panels"  # key of a drawing's `info`, and of a PNG file's text: what is drawn where, to cut it out again
_MOST_AMPLIFIED = 32  # a difference of one step is then dark grey


@dataclass(frozen=True)
class PanelLayout:
    """Sizes of a drawing, in pixels.

    Attributes:
      largest: Longest side of an image; a larger image is reduced.
      smallest: Shortest longer side of an image; a smaller image is enlarged, each pixel as a square.
      gap: Space around and between images.
      line: Height of a row of text.
      text: Height of the letters.
      title: Height of the letters of the first caption.
    """

    largest: int = 512
    smallest: int = 1
    gap: int = 4
    line: int = 24
    text: int = 14
    title: int = 14


# For a picture that is viewed on its own.
WIDE = PanelLayout(largest=1024, smallest=256, gap=16, line=30, text=18, title=24)


def draw_comparison(
    comparison: Comparison,
    captions: Sequence[str],
    labels: Sequence[str] = (),
    *,
    amplified: int,
    layout: PanelLayout,
) -> Image.Image:
    """Draws one row: original, reconstruction and their difference, under the captions.

    Args:
      comparison: The images.
      captions: Lines above the row, of which the first is its title.
      labels: Text above each of the three images; or none.
      amplified: Factor that the absolute difference of each channel is multiplied by.
      layout: Sizes of the parts of the row.

    Returns:
      The drawing; its `info[PANELS]` lists name, scores and the boxes of the three images.
    """
    original, reconstruction, _ = comparison
    difference = np.minimum(_difference(comparison) * amplified, 255).astype(np.uint8)
    images = [_fitted(Image.fromarray(pixels), layout) for pixels in (original, reconstruction, difference)]
    title, font = (ImageFont.load_default(size) for size in (layout.title, layout.text))
    width, height = images[0].size
    # Labels may be wider than narrow images.
    column = max([width, *(_length(label, font) for label in labels)]) + layout.gap
    top = layout.line * (len(captions) + bool(labels))
    # File names may contain newlines, which Pillow does not measure.
    lines = [(caption.replace("\n", " "), font if index else title) for index, caption in enumerate(captions)]
    needed = max([2 * column + width, 3 * column - layout.gap if labels else 0, *(_length(*line) for line in lines)])
    row = Image.new("RGB", (needed, top + height), "white")
    draw = ImageDraw.Draw(row)
    for index, (caption, its_font) in enumerate(lines):
        draw.text((0, index * layout.line + 2), caption, fill="black", font=its_font)
    for index, image in enumerate(images):
        row.paste(image, (index * column, top))
        if labels:
            draw.text((index * column, top - layout.line + 2), labels[index], fill="dimgray", font=font)
    boxes = [[index * column, top, index * column + width, top + height] for index in range(len(images))]
    row.info[PANELS] = [{"name": comparison.scores.name, "scores": comparison.scores.in_words(), "boxes": boxes}]
    return row


def draw_pair(
    image: UInt8[np.ndarray, "h w 3"], other: UInt8[np.ndarray, "h2 w2 3"], caption: str, *, layout: PanelLayout
) -> Image.Image:
    """Draws one row: an image and another one beside it, in the size of the first, each pixel as a rectangle.

    Args:
      image: 8-bit RGB.
      other: 8-bit RGB of any size.
      caption: Text above the row.
      layout: Sizes of the parts of the row.

    Returns:
      The drawing.
    """
    left = _fitted(Image.fromarray(image), layout)
    right = Image.fromarray(other).resize(left.size, Image.Resampling.NEAREST)
    font = ImageFont.load_default(layout.title)
    text, column = caption.replace("\n", " "), left.width + layout.gap
    row = Image.new("RGB", (max(column + left.width, _length(text, font)), layout.line + left.height), "white")
    ImageDraw.Draw(row).text((0, 2), text, fill="black", font=font)
    row.paste(left, (0, layout.line))
    row.paste(right, (column, layout.line))
    return row


def stack(rows: Sequence[Image.Image], layout: PanelLayout) -> Image.Image:
    """Stacks rows of `draw_comparison` vertically on white.

    Args:
      rows: Rows, one below the other.
      layout: Measures with which the rows were drawn.

    Returns:
      One picture.
    """
    gap = layout.gap
    size = (max(row.width for row in rows) + 2 * gap, sum(row.height + gap for row in rows) + gap)
    picture = Image.new("RGB", size, "white")
    top = gap
    picture.info[PANELS] = []
    for row in rows:
        for panel in row.info.get(PANELS, []):
            boxes = [[left + gap, up + top, right + gap, down + top] for left, up, right, down in panel["boxes"]]
            picture.info[PANELS].append(panel | {"boxes": boxes})
        picture.paste(row, (gap, top))
        top += row.height + gap
    return picture


def save_png(path: str | os.PathLike[str], picture: Image.Image, *, force: bool = False) -> None:
    """Writes a PNG file, or an object in a bucket, whole, with the places of its panels, if it has any, as text.

    Args:
      path: Path or address of the file.
      picture: Picture, of `draw_comparison` for example.
      force: Whether to replace an existing file.

    Raises:
      OSError: As `flax_vae.convert.files.atomic_file` and `create_at`.
    """
    text = PngInfo()
    if picture.info.get(PANELS):
        text.add_itxt(PANELS, json.dumps(picture.info[PANELS]))
    if is_address(path):
        content = io.BytesIO()
        picture.save(content, format="PNG", pnginfo=text)
        (write_at if force else create_at)(path, content.getvalue())
        return
    with atomic_file(path, force=force) as file:
        picture.save(file, format="PNG", pnginfo=text)


def visible_factor(comparison: Comparison) -> int:
    """Returns a power of two that makes the strongest hundredth of the difference at least half bright.

    Args:
      comparison: Image and reconstruction.
    """
    strong = float(np.percentile(_difference(comparison), 99))
    factor = 1
    while factor < _MOST_AMPLIFIED and strong * factor < 128:
        factor *= 2
    return factor


def _difference(comparison: Comparison) -> Int16[np.ndarray, "h w 3"]:
    """Returns the absolute difference per channel, as int16 so that it can be amplified."""
    return np.abs(comparison.original.astype(np.int16) - comparison.reconstruction)


def _fitted(image: Image.Image, layout: PanelLayout) -> Image.Image:
    image.thumbnail((layout.largest, layout.largest), Image.Resampling.LANCZOS)
    zoom = max(1, layout.smallest // max(image.size))
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def _length(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return int(font.getlength(text)) + 1
