"""PNG grids: tiles of the held-out photograph, each beside its reconstruction."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from convert.files import new_file
from train.evaluate import TILE, Evaluation, to_tiles

_PAIRS_PER_ROW = 4
_MOST_ROWS = 6
_GAP = 4
_ZOOM = 2  # a tile of 64 pixels is small on today's screens


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
