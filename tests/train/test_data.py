import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import train.data
from train.config import DataConfig
from train.data import Photographs, to_float, to_uint8
from train.errors import DataError
from train.images import read_image
from train.sources import shipped_photographs


@pytest.fixture
def photographs(folder):
    return Photographs(DataConfig(folder=str(folder), crop_size=8))


def places(crop, image):
    """Corners, and whether flipped, at which `crop` is found in `image`."""
    size = crop.shape[0]
    windows = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
    found = []
    for flipped, wanted in ((False, crop), (True, crop[:, ::-1])):
        found += [(*corner, flipped) for corner in np.argwhere((windows == wanted).all(axis=(2, 3, 4))).tolist()]
    return found


def test_a_batch_is_a_pure_function_of_seed_step_and_index(folder, photographs):
    again = Photographs(DataConfig(folder=str(folder), crop_size=8))
    late_first = again.batch(0, 7, 4), again.batch(0, 3, 4)
    np.testing.assert_array_equal(photographs.batch(0, 3, 4), late_first[1])
    np.testing.assert_array_equal(photographs.batch(0, 7, 4), late_first[0])
    np.testing.assert_array_equal(photographs.batch(0, 3, 2), late_first[1][:2])
    assert not np.array_equal(photographs.batch(1, 3, 4), photographs.batch(0, 3, 4))
    assert not np.array_equal(photographs.batch(0, 4, 4), photographs.batch(0, 3, 4))


def test_batches_are_float32_images_in_range(photographs):
    batch = photographs.batch(0, 0, 5)
    assert batch.shape == (5, 8, 8, 3)
    assert batch.dtype == np.float32
    assert -1 <= batch.min() < batch.max() <= 1
    crops = np.stack([photographs.crop(0, 0, index) for index in range(5)])
    np.testing.assert_array_equal(to_uint8(batch), crops)


def test_crops_lie_everywhere_in_every_trained_photograph_and_in_no_other(folder, photographs):
    images = {name: read_image(folder / name) for name in photographs.names}
    seen = Counter()
    for index in range(600):
        crop = photographs.crop(0, 0, index)
        where = [(name, *place) for name, image in images.items() for place in places(crop, image)]
        assert len(where) == 1
        seen[where[0]] += 1
    for name, image in images.items():
        ours = [key for key in seen if key[0] == name]
        assert 130 < sum(seen[key] for key in ours) < 270  # a third of them each
        assert {key[1] for key in ours} >= {0, image.shape[0] - 8}
        assert {key[2] for key in ours} >= {0, image.shape[1] - 8}
    flips = sum(count for key, count in seen.items() if key[3])
    assert 240 < flips < 360


def test_channels_come_in_every_order_if_they_are_shuffled(folder, photographs):
    shuffled = Photographs(DataConfig(folder=str(folder), crop_size=8, shuffle_channels=True))
    orders = Counter()
    for index in range(120):
        plain, crop = photographs.crop(0, 0, index), shuffled.crop(0, 0, index)
        found = [order for order in itertools.permutations(range(3)) if np.array_equal(plain[..., order], crop)]
        assert len(found) == 1  # the same crop otherwise
        orders[found[0]] += 1
    assert len(orders) == 6
    assert min(orders.values()) > 8


def test_a_crop_may_be_the_whole_photograph(tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / f"{name}.png")
    crop = Photographs(DataConfig(folder=str(tmp_path), crop_size=8)).crop(0, 0, 0)
    assert crop.shape == (8, 8, 3)


def test_the_last_by_name_is_held_out_unless_another_is_named(folder):
    config = DataConfig(folder=str(folder), crop_size=8)
    assert Photographs(config).held_out_name == "sub/c.png"
    named = Photographs(replace(config, held_out="a.png"))
    assert named.held_out_name == "a.png"
    assert named.names == ["b.jpg", "d.png", "sub/c.png"]
    np.testing.assert_array_equal(named.held_out(), read_image(folder / "a.png"))


def test_the_shipped_photographs_are_six_with_licences_and_one_held_out():
    photographs = Photographs(DataConfig(crop_size=64))
    assert photographs.held_out_name == "chelsea.jpg"
    assert len(photographs.names) == 5
    assert "chelsea.jpg" not in photographs.names
    assert all(height % 64 == width % 64 == 0 for height, width, _ in [photographs.held_out().shape])
    licences = (shipped_photographs() / "LICENSES.md").read_text()
    for file in shipped_photographs().glob("*.jpg"):
        assert f"`{file.name}`" in licences
        assert max(read_image(file).shape) <= 384


def test_photographs_beyond_the_memory_limit_are_decoded_when_drawn(folder, photographs, monkeypatch):
    monkeypatch.setattr(train.data, "_KEEP_BYTES", 0)
    lazy = Photographs(DataConfig(folder=str(folder), crop_size=8))
    np.testing.assert_array_equal(lazy.batch(0, 0, 6), photographs.batch(0, 0, 6))


def test_bytes_survive_the_way_to_float_and_back():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(to_float(every)), every)
    assert to_float(every)[[0, -1]].tolist() == [-1.0, 1.0]
    assert to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_unusable_folders_are_refused(tmp_path, folder):
    with pytest.raises(DataError, match="is no folder"):
        Photographs(DataConfig(folder=str(tmp_path / "none"), crop_size=8))
    with pytest.raises(DataError, match="holds 0 images"):
        Photographs(DataConfig(folder=str(tmp_path), crop_size=8))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="holds 1 images; training needs at least two"):
        Photographs(DataConfig(folder=str(tmp_path), crop_size=8))
    with pytest.raises(DataError, match="held_out='x.png'"):
        Photographs(DataConfig(folder=str(folder), held_out="x.png", crop_size=8))


def test_all_bad_files_are_named_before_anything_begins(tmp_path):
    Image.new("RGB", (8, 30)).save(tmp_path / "a_small.png")
    (tmp_path / "b_corrupt.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much")
    for name in ("c.png", "d.png"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    with pytest.raises(DataError, match=r"a_small.png is 30 x 8, smaller than crop_size=16.*b_corrupt.jpg"):
        Photographs(DataConfig(folder=str(tmp_path), crop_size=16))
