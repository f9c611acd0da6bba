"""Tests of reading images: as viewers show them, or refused by name."""

import errno
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flax_vae.convert.architecture import PRESETS
from flax_vae.convert.console.terminal import printable
from flax_vae.convert.errors import FileError
from flax_vae.errors import DataError
from flax_vae.images.read import StorageError, image_size, read_image, read_model_input
from flax_vae.images.sources.folder import list_folder

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


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4)])
def test_sixteen_bit_colours_keep_their_high_byte(tmp_path, colour_type, channels):
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (5, 7, channels)).astype(">u2")
    pixels[..., 3:] = 0xFFFF
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)  # Pillow cannot write such a file
    header = struct.pack(">IIBBBBB", 7, 5, 16, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), pixels[..., :3] >> 8)


def test_the_first_image_of_an_mpo_is_read(tmp_path):
    picture, depths = (
        Image.effect_mandelbrot((32, 24), box, 50).convert("RGB") for box in [(-2, -1, 1, 1), (0, 0, 1, 1)]
    )
    picture.save(tmp_path / "alone.jpg")
    picture.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[depths])
    with Image.open(tmp_path / "x.jpg") as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    assert image_size(tmp_path / "x.jpg") == (24, 32)
    np.testing.assert_array_equal(read_image(tmp_path / "x.jpg"), read_image(tmp_path / "alone.jpg"))


def test_content_reads_like_its_file(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    assert image_size(data) == (6, 4)
    np.testing.assert_array_equal(read_image(data), RAMP)
    with pytest.raises(DataError, match="records/7 cannot be decoded"):
        read_image(data[:-30], "records/7")


def test_transparency_is_composited_over_white(tmp_path):
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


def write_empty_second_frame(path):
    Image.fromarray(RAMP).save(path)
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * entries, len(data))  # where the second frame begins
    path.write_bytes(data + bytes(6))


def write_bad_exif(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(path, exif=b"Exif\0\0XX*" + exif.tobytes()[9:])


REFUSED = [
    ("x.png", lambda path: path.write_bytes(b""), "is empty"),
    ("x.jpg", lambda path: path.write_text("hello"), "not an image that Pillow can read"),
    ("x.jpg", write_truncated, "cannot be decoded"),
    ("x.png", write_animated, "several frames"),
    ("x.webp", write_animated, "several frames"),
    ("x.tif", write_animated, "several frames"),
    ("x.tif", write_empty_second_frame, "several frames"),  # Pillow: TypeError
    ("x.webp", write_bad_exif, "cannot be decoded"),  # Pillow: SyntaxError
    ("x.tif", lambda path: Image.fromarray(np.ones((4, 4), np.float32)).save(path), "floating-point"),
    ("x.png", lambda path: Image.new("1", (10_000, 10_000)).save(path), "more than .* pixels"),
    ("x.png", lambda path: Image.new("1", (14_000, 14_000)).save(path), "more than .* pixels"),
]


@pytest.mark.parametrize(("name", "write", "message"), REFUSED)
def test_unreadable_files_are_refused_by_name(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value)


def test_damaged_files_raise_only_data_errors(tmp_path):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    outcomes = {"shown": 0, "refused": 0}
    for suffix in ("jpg", "png", "webp", "bmp", "tif"):
        file = tmp_path / f"x.{suffix}"
        Image.fromarray(np.tile(RAMP, (4, 5, 1))).save(file, **({"exif": exif} if suffix in ("jpg", "webp") else {}))
        intact = file.read_bytes()
        for trial in range(60):
            damaged = bytearray(intact[: rng.integers(len(intact))] if trial % 3 == 0 else intact)
            for position in rng.integers(0, max(1, len(damaged)), 3)[: len(damaged)]:
                damaged[position] = rng.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on what it put up with
                try:
                    image = read_image(bytes(damaged))
                    assert image.dtype == np.uint8
                    assert image.shape[2] == 3
                    outcomes["shown"] += 1
                except DataError:
                    outcomes["refused"] += 1
    assert min(outcomes.values()) > 60


@pytest.mark.parametrize("pixels", [10_000, 14_000])
def test_bombs_are_refused_in_many_threads(tmp_path, pixels):
    Image.new("1", (pixels, pixels)).save(tmp_path / "bomb.png")
    Image.fromarray(RAMP).save(tmp_path / "x.png")

    def attempt(index):
        try:
            return read_image(tmp_path / ("x.png" if index % 2 else "bomb.png")).shape
        except DataError as error:
            return str(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(attempt, range(64)))
        assert warnings.filters == before
    assert set(outcomes[1::2]) == {(6, 4, 3)}
    assert all("more than 89,478,485 pixels" in outcome for outcome in outcomes[::2])


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.EACCES, DataError, "Permission denied.; make it readable"),
        (errno.EIO, StorageError, "Input/output error.; start again"),
        (errno.ESTALE, StorageError, "Stale file handle.; start again"),
    ],
)
def test_a_failing_disk_raises_a_storage_error(tmp_path, monkeypatch, number, kind, message):
    def fail(path, **_):
        raise OSError(number, os.strerror(number), path)

    (tmp_path / "x.png").touch()
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DataError, match=f"x.png cannot be opened .{message}") as caught:
        image_size(tmp_path / "x.png")
    assert type(caught.value) is kind


def test_a_missing_file_raises_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        read_image(tmp_path / "none.png")


def test_folders_are_searched_recursively_and_in_order(tmp_path):
    for name in ("b/x.JPG", "a.png", "b/.x.png", ".hidden/y.png", "notes.txt", "c.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert list_folder(tmp_path).images == ("a.png", "b/x.JPG", "c.jpeg")


def test_links_to_images_are_read_and_dangling_links_are_not(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "c.png").symlink_to("none.png")
    (tmp_path / "d.png").symlink_to("d.png")
    assert list_folder(tmp_path).images == ("a.png", "b.png")
    assert list_folder(tmp_path).lost == ("c.png", "d.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), RAMP)


def test_names_that_are_not_utf8_are_read_and_printable(tmp_path):
    try:
        Image.fromarray(RAMP).save(tmp_path / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes no such names")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"hello")
    bad, good = list_folder(tmp_path).images[::-1]
    np.testing.assert_array_equal(read_image(tmp_path / good), RAMP)
    assert printable(good) == "caf\\xe9.png"
    with pytest.raises(DataError, match="xff.png is not an image") as caught:
        read_image(tmp_path / bad)
    assert str(caught.value).encode("utf-8")
    assert printable("größe.png") == "größe.png"


def test_model_input_is_cropped_and_has_the_channels_of_the_model(tmp_path):
    params = PRESETS["tiny"]
    pixels = np.arange(17 * 26 * 3, dtype=np.uint8).reshape(17, 26, 3)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    images = read_model_input(tmp_path / "colour.png", params)
    assert images.shape == (1, 16, 24, 3) and images.dtype == np.float32
    np.testing.assert_allclose(images[0], pixels[:16, :24] / 127.5 - 1, atol=1e-6)
    grey = read_model_input(tmp_path / "colour.png", replace(params, in_channels=1))
    expected = np.asarray(Image.fromarray(pixels).convert("L"))[:16, :24, None] / 127.5 - 1
    np.testing.assert_allclose(grey[0], expected, atol=1e-6)


def test_model_input_refuses_small_images_and_other_channels(tmp_path):
    params = PRESETS["tiny"]
    Image.new("RGB", (26, 3)).save(tmp_path / "small.png")
    with pytest.raises(FileError, match=rf"small.png is 3 x 26 x 3; .* sides of at least {params.factor}"):
        read_model_input(tmp_path / "small.png", params)
    Image.new("RGB", (26, 26)).save(tmp_path / "three.png")
    with pytest.raises(FileError, match="26 x 26 x 3; the model takes 4 channels"):
        read_model_input(tmp_path / "three.png", replace(params, in_channels=4))
    (tmp_path / "postscript.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with pytest.raises(FileError, match="it is PostScript"):
        read_model_input(tmp_path / "postscript.png", params)
