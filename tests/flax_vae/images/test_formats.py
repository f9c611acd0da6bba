"""Tests of image formats, files that must not be opened, and files that need too much time or memory."""

import functools
import io
import os
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image, features

from flax_vae.errors import DataError
from flax_vae.images.formats import READ
from flax_vae.images.read import image_size, read_image

rows, columns = np.mgrid[:24, :40]
SMOOTH = np.stack([rows * 9, columns * 6, rows + columns], axis=-1).astype(np.uint8)
ALL = [(name, suffix) for name, suffixes in READ.items() for suffix in suffixes]


@pytest.mark.parametrize(("kind", "suffix"), ALL, ids=[suffix for _, suffix in ALL])
def test_each_format_is_read_with_each_suffix(tmp_path, kind, suffix):
    if kind in ("AVIF", "WEBP") and not features.check(kind.lower()):
        pytest.skip(f"this Pillow has no {kind}")
    file, image = tmp_path / f"x{suffix}", Image.fromarray(SMOOTH)
    image = {".pbm": image.convert("1"), ".pgm": image.convert("L")}.get(suffix, image)
    image.save(file, kind, **({"quality": 95} if kind in ("AVIF", "JPEG", "WEBP") else {}))
    assert image_size(file) == (24, 40)
    apart = np.abs(read_image(file).astype(int) - np.asarray(image.convert("RGB"))).mean()
    assert apart < (4 if kind in ("AVIF", "JPEG", "WEBP", "GIF") else 0.01)


def test_a_postscript_file_named_png_starts_no_program(tmp_path):
    """Pillow would render it with Ghostscript."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    program.chmod(0o755)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(hello) print\n%%EOF\n"
    (tmp_path / "holiday.png").write_bytes(eps)
    code = f"""
import sys
from flax_vae.errors import DataError
from flax_vae.images.read import image_size, read_image
from pathlib import Path
for read, what in [(f, w) for f in (image_size, read_image) for w in (Path(sys.argv[1]), {eps!r})]:
    try:
        read(what)
    except DataError as error:
        assert "PostScript" in str(error), error
    else:
        raise AssertionError("it was read")
"""
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "holiday.png"], check=True, env=environment)
    assert not (tmp_path / "started").exists()


CALLED_PNG = {
    "a HEIF image.*pillow-heif": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
    "a video.*ffmpeg": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(40),
    "a PDF document": b"%PDF-1.7\n",
    "a Photoshop file": b"8BPS\0\x01" + bytes(40),
    "an SVG drawing": b'  <svg xmlns="http://www.w3.org/2000/svg"/>',
    "a web page.*download": b"<!DOCTYPE html><html></html>",
    "a Git LFS pointer.*git lfs pull": b"version https://git-lfs.github.com/spec/v1\n",
    "is empty": b"",
    "is not an image that Pillow can read": b"hello",
}


@pytest.mark.parametrize("message", CALLED_PNG)
def test_other_formats_are_identified_by_content(tmp_path, message):
    (tmp_path / "x.png").write_bytes(CALLED_PNG[message])
    with pytest.raises(DataError, match=f"x.png .*{message.removeprefix('is ')}"):
        image_size(tmp_path / "x.png")
    with pytest.raises(DataError):
        read_image(CALLED_PNG[message], "record 7")


def test_random_bytes_are_not_identified_as_tga(tmp_path):
    """Pillow would read these 18 bytes as a TGA header."""
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 4, 4, 24, 0)
    for name in ("x.png", "x.tga"):
        (tmp_path / name).write_bytes(header + bytes(48))
    with pytest.raises(DataError, match="is not an image"):
        image_size(tmp_path / "x.png")
    assert image_size(tmp_path / "x.tga") == (4, 4)


def test_pipes_devices_and_folders_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "linked.png").symlink_to("pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name, what in {
        "pipe": "a pipe or a device",
        "linked": "a pipe",
        "device": "a device",
        "folder": "a folder",
    }.items():
        with pytest.raises(DataError, match=what):
            image_size(tmp_path / f"{name}.png")


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*before, after=b""):
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(25 * 8)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(before) + pixels + after + chunk(b"IEND")


def png16(pixels):
    """Returns a 16-bit RGB PNG, which Pillow does not write."""
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND")


def saved(kind, image=None, **settings):
    file = io.BytesIO()
    (image or Image.fromarray(SMOOTH)).save(file, kind, **settings)
    return file.getvalue()


def tiff(*entries, pages=1):
    fixed = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    fixed += [(277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64), *entries]
    page = struct.pack("<H", len(fixed)) + b"".join(struct.pack("<HHII", *entry) for entry in sorted(fixed))
    size = len(page) + 4
    following = [8 + size * number for number in range(1, pages)] + [0]
    return b"II*\0\x08\0\0\0" + b"".join(page + struct.pack("<I", offset) for offset in following)


def frames(kind, count):
    images = [Image.fromarray(np.full((8, 8), number % 256, np.uint8)) for number in range(count)]
    images = [image.convert("P") if kind == "GIF" else image for image in images]
    return saved(kind, images[0], save_all=True, append_images=images[1:])


def jpeg_of_scans(count):
    content = saved("JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


ASKS_FOR_MUCH = {
    "text of 64 MB": lambda: png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26), 9))),
    "profile of 64 MB": lambda: png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 26), 9))),
    "a million chunks": lambda: png(chunk(b"tEXt") * 1_000_000),
    "a million chunks behind": lambda: png(after=chunk(b"tEXt") * 1_000_000),
    "a million markers": lambda: b"\xff\xd8" + b"\xff\xef\0\2" * 1_000_000 + saved("JPEG")[2:],
    "5000 scans": lambda: jpeg_of_scans(5000),
    "2000 frames of GIF": lambda: frames("GIF", 2000),
    "a million extensions": lambda: (
        saved("GIF", Image.new("P", (8, 8)))[:-1] + b"!\xf9\0" * 3_000_000 + b"," + bytes(9) + b";"
    ),
    "300 frames of WebP": lambda: frames("WEBP", 300),
    "300 frames of PNG": lambda: frames("PNG", 300),
    "100,000 pages": lambda: tiff(pages=100_000),
    "a tile of 4 GB": lambda: tiff((322, 4, 1, 65536), (323, 4, 1, 65536), (324, 4, 1, 8), (325, 4, 1, 64)),
    "8 gigapixels": lambda: png().replace(struct.pack(">II", 8, 8), struct.pack(">II", 90_000, 90_000)),
}


@functools.cache
def made(what):
    return ASKS_FOR_MUCH[what]()


@pytest.mark.parametrize("what", ASKS_FOR_MUCH)
def test_expensive_files_are_refused_fast(what):
    content = made(what)
    assert len(content) < 13_000_000
    if what == "a million chunks behind":
        assert image_size(content) == (8, 8)  # what lies behind the pixels is not looked at
    begun = time.process_time()
    with pytest.raises(DataError):
        read_image(content, "x")
    assert time.process_time() - begun < 2.0  # a second, on a machine by itself


def test_expensive_files_take_little_memory(tmp_path):
    """Measures one process against an interpreter that has read a small image."""
    for what in ASKS_FOR_MUCH:
        (tmp_path / what).write_bytes(made(what))
    code = """
import pathlib, resource, sys
from flax_vae.errors import DataError
from flax_vae.images.read import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        read_image(file)
    except DataError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 100  # MiB


def test_too_large_files_are_refused_before_reading(tmp_path):
    for name, size in {"x.png": (1 << 30) + 1, "x.webp": (1 << 28) + 1}.items():
        with open(tmp_path / name, "wb") as file:
            file.write(saved("WEBP" if name == "x.webp" else "PNG"))
            file.truncate(size)  # sparse
        with pytest.raises(DataError, match="bytes, more than"):
            image_size(tmp_path / name)


def test_large_images_with_small_chunks_are_read(tmp_path):
    """Real files have many parts: blocks of 255 bytes in a GIF, runs in a BMP, chunks of 4 KiB in a PNG."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 1000), np.uint8)
    for kind in ("GIF", "PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(read_image(saved(kind, Image.fromarray(noise)))[..., 1], noise)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in noise))
    pieces = b"".join(chunk(b"IDAT", pixels[first : first + 4096]) for first in range(0, len(pixels), 4096))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1000, 900, 8, 0, 0, 0, 0))
    np.testing.assert_array_equal(read_image(b"\x89PNG\r\n\x1a\n" + header + pieces + chunk(b"IEND"))[..., 0], noise)
