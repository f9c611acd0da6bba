import hashlib
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flax_vae.train.data.photographs
from flax_vae.images.read import StorageError, read_image
from flax_vae.images.sizes import to_uint8
from flax_vae.images.sources.folder import FolderSource
from flax_vae.train.config.schema import DataConfig
from flax_vae.train.data.photographs import Photographs
from flax_vae.train.data.prefetch import Batches
from flax_vae.train.data.shipped import shipped_photographs
from flax_vae.train.errors import DataError


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


def test_photographs_beyond_the_memory_limit_are_decoded_when_drawn(folder, photographs):
    lazy = Photographs(DataConfig(folder=str(folder), crop_size=8), keep_bytes=0)
    np.testing.assert_array_equal(lazy.batch(0, 0, 6), photographs.batch(0, 0, 6))


def test_unusable_folders_are_refused(tmp_path, folder):
    with pytest.raises(DataError, match="none does not exist; give a folder"):
        Photographs(DataConfig(folder=str(tmp_path / "none"), crop_size=8))
    with pytest.raises(DataError, match="holds no image file"):
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


def noise(height, width, seed=0):
    return np.random.default_rng((seed, height, width)).integers(0, 256, (height, width, 3), np.uint8)


def save_all(path, images):
    path.mkdir(exist_ok=True)
    for name, image in images.items():
        Image.fromarray(image).save(path / name)
    return DataConfig(folder=str(path), crop_size=8)


@pytest.mark.parametrize(
    ("shuffle_channels", "digest"),
    [
        (False, "2d29664d5497707c1dbcb6c03937c703799220818b271b1f50bed5973f2237cd"),
        (True, "06484a22c922ba78b775c7bf48031acb17718ec7faa1e0f6d468f949cf295e65"),
    ],
)
def test_crops_are_those_of_every_earlier_version(tmp_path, shuffle_channels, digest):
    """A run that goes on after an update of this package must see what it would have seen."""
    config = save_all(tmp_path, {f"{seed}.png": noise(20 + seed, 33 - seed, seed) for seed in range(5)})
    batch = Photographs(replace(config, shuffle_channels=shuffle_channels)).batch(5, 3, 8)
    assert hashlib.sha256(batch.tobytes()).hexdigest() == digest


def test_without_flips_crops_stand_as_the_photographs_do(folder, photographs):
    plain = Photographs(DataConfig(folder=str(folder), crop_size=8, flip=False))
    images = [read_image(folder / name) for name in plain.names]
    for index in range(40):
        crop, either = plain.crop(0, 0, index), photographs.crop(0, 0, index)
        assert [place[2] for image in images for place in places(crop, image)] == [False]
        assert np.array_equal(crop, either) or np.array_equal(crop[:, ::-1], either)


@pytest.mark.parametrize(("resize", "wanted"), [(10, (10, 17)), (40, (40, 66)), (20, (20, 33))])
def test_photographs_are_resized_first_by_their_shorter_side(folder, resize, wanted):
    photographs = Photographs(DataConfig(folder=str(folder), crop_size=8, resize=resize, held_out="a.png", flip=False))
    assert photographs.held_out().shape == (*wanted, 3)
    resized = []
    for name in photographs.names:
        with Image.open(folder / name) as image:
            scale = resize / min(image.size)
            size = [int(side * scale + 0.5) for side in image.size]
            resized.append(np.asarray(image.resize(size, Image.Resampling.LANCZOS)))
    for index in range(20):
        assert any(places(photographs.crop(0, 0, index), image) for image in resized)


def test_resizing_leaves_a_plain_surface_plain_and_a_fine_pattern_grey(tmp_path):
    plain, pattern = np.full((64, 48, 3), 77, np.uint8), np.zeros((64, 64, 3), np.uint8)
    pattern[::2] = 255
    config = replace(save_all(tmp_path, {"a.png": plain, "b.png": pattern, "c.png": plain}), resize=8)
    crops = np.stack([Photographs(config).crop(0, 0, index) for index in range(12)])
    means = {int(crop.mean()) for crop in crops}
    assert means <= {77, 126, 127, 128}
    assert len(means) > 1
    assert max(np.ptp(crop) for crop in crops) < 26  # 255 without the wider filter


def test_windows_are_shrunk_by_areas_down_to_the_smallest_scale(tmp_path):
    # Every pixel tells its place, so that a crop tells the side of its window: within a pixel over a span of 24.
    rows, columns = np.mgrid[:120, :250]
    ramp = np.stack([rows * 2, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    config = save_all(tmp_path, {"a.png": ramp, "b.png": ramp})
    config = replace(config, crop_size=32, min_scale=0.25, flip=False)
    photographs = Photographs(config)
    crops = [photographs.crop(0, 0, index).astype(float) for index in range(300)]
    assert {crop.shape for crop in crops} == {(32, 32, 3)}
    sides = np.array([(crop[16, 28, 1] - crop[16, 4, 1]) / 24 * 32 for crop in crops])
    heights = np.array([(crop[28, 16, 0] - crop[4, 16, 0]) / 2 / 24 * 32 for crop in crops])
    assert np.abs(heights - sides).max() < 2.7  # windows are square
    assert 30.6 < sides.min() < 33.4
    assert 62.6 < sides.max() < 65.4
    assert abs(((32 / sides) ** 2).mean() - 0.625) < 0.03  # areas are even over 0.25 .. 1
    tiny = Photographs(replace(config, min_scale=1e-6))  # windows of up to 32,000 pixels, where there are 120
    assert max(np.ptp(tiny.crop(0, 0, index)[..., 0]) for index in range(9)) > 225


def test_a_scale_of_one_is_the_crop_itself(folder, photographs):
    almost = Photographs(DataConfig(folder=str(folder), crop_size=8, min_scale=0.999))
    np.testing.assert_array_equal(almost.batch(0, 0, 8), photographs.batch(0, 0, 8))


@pytest.fixture
def dirty(tmp_path):
    """Twenty images, of which c is of the wrong size, d no image, and e and f damaged behind their headers."""
    images = {f"{letter}.png": noise(30, 40, number) for number, letter in enumerate("abcdefghijklmnopqrst")}
    clean = save_all(tmp_path / "clean", images)
    dirty = replace(save_all(tmp_path / "dirty", images), bad_files="skip", max_bad_fraction=0.25, max_bad_count=0)
    Image.fromarray(noise(7, 40)).save(tmp_path / "dirty" / "c.png")
    (tmp_path / "dirty" / "d.png").write_bytes(b"")
    for name in ("e.png", "f.png"):
        file = tmp_path / "dirty" / name
        file.write_bytes(file.read_bytes()[:-2000])
    return clean, dirty


def test_skipped_images_are_replaced_reported_and_change_no_other_example(dirty, monkeypatch):
    clean, skipping = map(Photographs, dirty)
    found = ["c.png is 7 x 40, smaller", "d.png is not an image", "e.png cannot be decoded", "f.png cannot be decoded"]
    assert [expected in problem for expected, problem in zip(found, skipping.problems, strict=True)] == [True] * 4
    names = {read_image(Path(dirty[0].folder) / name)[..., 2].sum(): name for name in clean.names}
    bad = {"c.png", "d.png", "e.png", "f.png"}
    shown, replaced = set(), 0
    monkeypatch.setattr(
        flax_vae.train.data.photographs, "cut", lambda photograph, words, config: photograph
    )  # a crop as large as it gets
    for index in range(120):
        wanted, got = clean.crop(0, 0, index), skipping.crop(0, 0, index)
        of = names[wanted[..., 2].sum()]
        shown.add(names[got[..., 2].sum()])
        if of in bad:
            replaced += 1
        else:
            np.testing.assert_array_equal(got, wanted)
    assert replaced > 10
    assert shown == set(names.values()) - bad


def test_what_replaces_a_skipped_image_is_the_same_whenever_its_fault_is_found(dirty):
    early = Photographs(dirty[1])
    wanted = [early.batch(0, step, 6) for step in range(12)]
    for order in (range(12), range(11, -1, -1)):
        late = Photographs(dirty[1], keep_bytes=0)
        assert len(late.problems) == 2  # headers tell of no more
        got = {step: late.batch(0, step, 6) for step in order}
        np.testing.assert_array_equal([got[step] for step in range(12)], wanted)
        assert late.problems == early.problems
    threaded = Photographs(dirty[1], keep_bytes=0)
    with Batches(threaded, 0, 0, 12, 6, place=lambda batch: batch, workers=4) as batches:
        np.testing.assert_array_equal(list(batches), wanted)
    assert threaded.problems == early.problems


def test_more_bad_images_than_allowed_end_the_run(dirty):
    with pytest.raises(DataError, match=r"4 of 19 images cannot be used, more than max_bad_fraction=0.2: .*c.png is 7"):
        Photographs(replace(dirty[1], max_bad_fraction=0.2))
    photographs = Photographs(replace(dirty[1], max_bad_fraction=0.2), keep_bytes=0)
    with pytest.raises(DataError, match="4 of 19 images cannot be used"):
        photographs.batch(0, 0, 100)


def test_an_image_damaged_behind_its_header_ends_a_run_that_refuses_bad_ones(dirty):
    save_all(Path(dirty[1].folder), {"c.png": noise(9, 9), "d.png": noise(9, 9)})
    photographs = Photographs(replace(dirty[1], bad_files="refuse", max_bad_fraction=0.9), keep_bytes=0)
    with pytest.raises(DataError, match=r"/dirty: [ef]\.png cannot be decoded"):
        photographs.batch(0, 0, 100)


def test_the_held_out_image_is_never_skipped(dirty):
    for name in ("d.png", "e.png"):
        with pytest.raises(DataError, match=f"{name} .*this image is held out"):
            Photographs(replace(dirty[1], held_out=name))
    assert Photographs(replace(dirty[1], held_out="c.png")).held_out().shape == (7, 40, 3)


def test_a_failing_disk_ends_the_run_where_bad_images_are_skipped(dirty, monkeypatch):
    photographs = Photographs(dirty[1], keep_bytes=0)
    (Path(dirty[1].folder) / "a.png").unlink()
    with pytest.raises(StorageError, match="a.png cannot be opened .No such file"):
        photographs.batch(0, 0, 100)

    size = FolderSource.size

    def fail_once(source, index):
        if index == 6:
            raise StorageError("the disk is gone")
        return size(source, index)

    monkeypatch.setattr(FolderSource, "size", fail_once)
    with pytest.raises(DataError, match="the disk is gone"):
        Photographs(dirty[1], keep_bytes=0)


def test_small_images_are_used_where_resizing_makes_them_fit_but_not_into_giants(dirty):
    assert len(Photographs(replace(dirty[1], resize=12)).problems) == 3
    Image.fromarray(noise(1, 9000)).save(Path(dirty[1].folder) / "c.png")
    photographs = Photographs(replace(dirty[1], resize=120))
    assert "c.png would be 120 x 1080000 after resize=120, more than" in photographs.problems[0]


BAD_CONFIGS = [
    ({"resize": 7}, "resize=7 must be at least crop_size=8"),
    ({"resize": 0}, "resize=0 must be a whole number"),
    ({"min_scale": 0.0}, "min_scale=0.0 must be greater than 0 and at most 1"),
    ({"min_scale": float("nan")}, "min_scale=nan"),
    ({"bad_files": "ignore"}, "bad_files='ignore' must be 'refuse' or 'skip'"),
    ({"max_bad_fraction": 1.0}, "max_bad_fraction=1.0 must be at least 0 and less than 1"),
    ({"max_bad_fraction": -0.1}, "max_bad_fraction=-0.1"),
    ({"max_bad_count": -1}, "max_bad_count=-1"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_CONFIGS, ids=[message for _, message in BAD_CONFIGS])
def test_bad_settings_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(crop_size=8, **fields)


def test_all_bad_images_are_in_one_message_with_one_flag_for_each_kind(dirty):
    config = replace(dirty[1], bad_files="refuse", held_out="f.png")
    with pytest.raises(DataError) as caught:
        Photographs(config)
    small, damaged, held_out = str(caught.value).split(". ")
    assert "c.png is 7 x 40, smaller than crop_size=8; --resize 8 scales every image" in small
    assert damaged.startswith("2 of 19 images cannot be used: ") and "d.png is not an image" in damaged
    assert damaged.endswith("; --bad-files skip trains without them") and "replace or remove" not in damaged
    assert "f.png cannot be decoded" in held_out and held_out.endswith("--held-out PATH names another, such as 't.png'")
    assert Photographs(replace(config, resize=8, bad_files="skip", held_out="t.png", max_bad_fraction=0.2)).names


def test_a_few_of_a_small_folder_may_be_skipped_but_not_most_of_it(dirty, tmp_path):
    config = replace(dirty[1], max_bad_fraction=0.01, max_bad_count=DataConfig().max_bad_count)
    assert len(Photographs(config).problems) == 4
    few = save_all(tmp_path / "few", {f"{letter}.png": noise(30, 40) for letter in "abcdef"})
    for name in ("a.png", "b.png"):
        (tmp_path / "few" / name).write_bytes(b"")
    few = replace(few, bad_files="skip")
    assert len(Photographs(few).problems) == 2
    (tmp_path / "few" / "c.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3 of 5 images cannot be used.* --data.max-bad-fraction 0.6$"):
        Photographs(few)
    assert len(Photographs(replace(few, max_bad_fraction=0.6)).problems) == 3
