import numpy as np
import pytest
from PIL import Image

from flax_vae.train.evaluation.tiles import TileScores, from_tiles, to_tiles
from flax_vae.train.report.pictures import pair_grid, save_grid

rng = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(64, 128), (65, 1), (200, 130)])
def test_tiles_are_put_together_again(size):
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    tiles = to_tiles(image, 64)
    assert tiles.shape == (-(-size[0] // 64) * -(-size[1] // 64), 64, 64, 3)
    np.testing.assert_array_equal(from_tiles(tiles, *size), image)


def test_tiles_run_row_by_row_and_repeat_the_border():
    image = rng.integers(0, 256, (3, 5, 1), np.uint8)
    tiles = to_tiles(image, 2)
    np.testing.assert_array_equal(tiles[1], image[:2, 2:4])
    np.testing.assert_array_equal(tiles[2], image[:2, [4, 4]])
    np.testing.assert_array_equal(tiles[3], image[[2, 2], :2])


def test_the_grid_shows_originals_left_and_reconstructions_right(tmp_path):
    original = np.full((64, 128, 3), 10, np.uint8)
    save_grid(tmp_path / "x.png", TileScores(original, np.full_like(original, 200), {}))
    grid = np.asarray(Image.open(tmp_path / "x.png"))[::2, ::2, 0]
    assert grid.shape == (4 + 64 + 4, 4 * (128 + 4) + 4)
    assert grid[4:68, 4:68].tolist() == [[10] * 64] * 64
    assert grid[4:68, 68:132].tolist() == [[200] * 64] * 64
    assert grid[0, 0] == 255
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]


def test_a_large_photograph_is_shown_in_part():
    grid = pair_grid([np.full((2, 4, 3), index, np.uint8) for index in range(100)])
    assert grid.shape == (6 * 6 + 4, 4 * 8 + 4, 3)
    assert grid[4, 4, 0] == 0
