"""Writes PNG grids: tiles of the held-out photograph beside their reconstructions, and the worst of a data set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flax_vae.images import Comparison, PanelLayout, draw_comparison, save_png, stack
from flax_vae.train.evaluation import TILE, TileScores, to_tiles

_PAIRS_PER_ROW = 4
_MOST_ROWS = 6
_GAP = 4
_ZOOM = 2  # enlarges tiles of 64 pixels, which are small on a screen
_LAYOUT = PanelLayout()
_AMPLIFIED = 4  # makes small differences visible; equal for all images, so that they can be compared


def save_grid(path: Path, evaluation: TileScores) -> None:
    """Writes pairs of tiles, the original left and the reconstruction right, enlarged twice."""
    pairs = zip(to_tiles(evaluation.original, TILE), to_tiles(evaluation.reconstruction, TILE), strict=True)
    grid = Image.fromarray(pair_grid([np.concatenate(pair, axis=1) for pair in pairs]))
    enlarged = grid.resize((grid.width * _ZOOM, grid.height * _ZOOM), Image.Resampling.NEAREST)
    save_png(path, enlarged, force=True)


def pair_grid(pairs: list[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "gh gw 3"]:
    """Arranges images of one size on white, row by row; selects evenly spaced ones if there are too many."""
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
    """Writes a row per image, under its name and scores: original, reconstruction and difference.

    The difference is absolute per channel and four times as bright.
    """
    rows = []
    for comparison in comparisons:
        caption = "   ".join([comparison.scores.name, *comparison.scores.in_words()])
        rows.append(draw_comparison(comparison, [caption], amplified=_AMPLIFIED, layout=_LAYOUT))
    save_png(path, stack(rows, _LAYOUT), force=True)
