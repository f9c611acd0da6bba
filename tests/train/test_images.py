"""What a file can hide: each trap is either shown as a viewer would show it, or refused by name."""

import numpy as np
import pytest
from PIL import Image

from train.errors import DataError
from train.images import StorageError, image_size, list_images, read_image

RAMP = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3


def test_plain_rgb_is_read_bit_for_bit(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), RAMP)
    assert image_size(tmp_path / "x.png") == (6, 4)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    Image.fromarray(RAMP).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), np.rot90(RAMP, -1))


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png")[0, :, 0], [0, 1, 128, 255])


def test_transparency_is_laid_over_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    Image.fromarray(rgba).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "RGBA"])
def test_every_other_mode_becomes_rgb(tmp_path, mode):
    Image.fromarray(RAMP).convert(mode).save(tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"))
    image = read_image(next(tmp_path.iterdir()))
    assert image.shape == (6, 4, 3)
    assert image.dtype == np.uint8


def test_palette_transparency_is_kept(tmp_path):
    palette = Image.fromarray(RAMP).convert("P")
    palette.save(tmp_path / "x.png", transparency=palette.getpixel((0, 0)))
    assert read_image(tmp_path / "x.png")[0, 0].tolist() == [255, 255, 255]


def write_truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-9000])


def write_animated(path):
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1].copy())]
    frames[0].save(path, save_all=True, append_images=frames[1:])


REFUSED = [
    ("x.png", lambda path: path.write_bytes(b""), "no image that Pillow can read"),
    ("x.jpg", lambda path: path.write_text("hello"), "no image that Pillow can read"),
    ("x.jpg", write_truncated, "cannot be decoded"),
    ("x.png", write_animated, "2 frames"),
    ("x.tif", lambda path: Image.fromarray(np.ones((4, 4), np.float32)).save(path), "floating-point"),
    ("x.png", lambda path: Image.new("1", (10_000, 10_000)).save(path), "more than .* pixels"),
    ("x.png", lambda path: Image.new("1", (14_000, 14_000)).save(path), "more than .* pixels"),
]


@pytest.mark.parametrize(("name", "write", "message"), REFUSED)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value)


def test_a_missing_file_is_a_matter_of_storage(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        read_image(tmp_path / "none.png")


def test_folders_are_searched_recursively_and_in_order(tmp_path):
    for name in ("b/x.JPG", "a.png", "b/.x.png", ".hidden/y.png", "notes.txt", "c.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert list_images(tmp_path) == ["a.png", "b/x.JPG", "c.jpeg"]
