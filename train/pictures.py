"""PNG grids: tiles of the held-out photograph, each beside its reconstruction; and the worst of a data set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from convert.files import new_file
from train.evaluate import TILE, Evaluation, to_tiles
from train.evaluation import Comparison

_PAIRS_PER_ROW = 4
_MOST_ROWS = 6
_GAP = 4
_ZOOM = 2  # a tile of 64 pixels is small on today's screens
_LARGEST = 512  # pixels; larger images are made smaller for the grid
_LINE = 24  # pixels of a row of text
_AMPLIFIED = 4  # a difference that matters is still nearly black


def save_grid(path: Path, evaluation: Evaluation) -> None:
    """Writes pairs of tiles, the original left and the reconstruction right, enlarged twice."""
    pairs = zip(to_tiles(evaluation.original, TILE), to_tiles(evaluation.reconstruction, TILE), strict=True)
    grid = Image.fromarray(pair_grid([np.concatenate(pair, axis=1) for pair in pairs]))
    enlarged = grid.resize((grid.width * _ZOOM, grid.height * _ZOOM), Image.Resampling.NEAREST)
    with new_file(path, force=True) as file:
        enlarged.save(file, format="PNG")


def pair_grid(pairs: list[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "gh gw 3"]:
    """Lays pictures of one size out on white, row by row; evenly chosen ones where there are too many."""
    most = _PAIRS_PER_ROW * _MOST_ROWS
    if len(pairs) > most:
        pairs = [pairs[index * len(pairs) // most] for index in range(most)]
    height, width, _ = pairs[0].shape
    rows = -(-len(pairs) // _PAIRS_PER_ROW)
    shape = (rows * (height + _GAP) + _GAP, _PAIRS_PER_ROW * (width + _GAP) + _GAP, 3)
    grid = np.full(shape, 255, np.uint8)
    for index, pair in enumerate(pairs):
        top = _GAP + (index // _PAIRS_PER_ROW) * (height + _GAP)
        left = _GAP + (index % _PAIRS_PER_ROW) * (width + _GAP)
        grid[top : top + height, left : left + width] = pair
    return grid


def save_comparisons(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Writes one row per image: original, reconstruction and their difference, under its name and scores.

    The difference is the absolute one of each channel, four times as bright.
    """
    rows = [_row(comparison) for comparison in comparisons]
    width = max(row.width for row in rows) + 2 * _GAP
    grid = Image.new("RGB", (width, sum(row.height + _GAP for row in rows) + _GAP), "white")
    top = _GAP
    for row in rows:
        grid.paste(row, (_GAP, top))
        top += row.height + _GAP
    with new_file(path, force=True) as file:
        grid.save(file, format="PNG")


def _row(comparison: Comparison) -> Image.Image:
    original, reconstruction, scores = comparison
    difference = np.abs(original.astype(np.int16) - reconstruction) * _AMPLIFIED
    pictures = [
        Image.fromarray(pixels) for pixels in (original, reconstruction, np.minimum(difference, 255).astype(np.uint8))
    ]
    for picture in pictures:
        picture.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    numbers = [f"PSNR {scores.psnr:.2f} dB"]
    numbers += [f"SSIM {scores.ssim:.3f}"] if scores.ssim is not None else []
    numbers += [f"LPIPS {scores.lpips:.4f}"] if scores.lpips is not None else []
    text = f"{scores.name}   {'   '.join(numbers)}"
    font = ImageFont.load_default(14)
    width, height = pictures[0].size
    row = Image.new("RGB", (max(3 * width + 2 * _GAP, int(font.getlength(text)) + 1), height + _LINE), "white")
    ImageDraw.Draw(row).text((0, 2), text, fill="black", font=font)
    for column, picture in enumerate(pictures):
        row.paste(picture, (column * (width + _GAP), _LINE))
    return row
