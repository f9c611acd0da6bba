"""Tests of embedded colour profiles."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from flax_vae.images.read import read_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
rows, columns = np.mgrid[:12, :20]
PIXELS = np.stack([rows * 20, columns * 12, 255 - rows * columns], axis=-1).astype(np.uint8)


def swapped():
    """Returns a profile with red and green exchanged."""
    data = bytearray(SRGB)
    count = struct.unpack(">I", data[128:132])[0]
    at = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = (bytes(data[at[tag] + 4 : at[tag] + 12]) for tag in (b"rXYZ", b"gXYZ"))
    data[at[b"rXYZ"] + 4 : at[b"rXYZ"] + 12], data[at[b"gXYZ"] + 4 : at[b"gXYZ"] + 12] = green, red
    return bytes(data)


def profile(space, device_class, tags):
    """Returns a profile of version 2 from its parts."""
    body, table, at = b"", b"", 132 + 12 * len(tags)
    for name, content in tags:
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    size = at + len(body)
    white = struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    head = struct.pack(">I4sI4s4s4s12x4s4s4sI4s4sQI12s4s", size, b"none", 0x02400000, device_class, space, b"XYZ ",
                       b"acsp", b"none", b"\0\0\0\0", 0, b"none", b"none", 0, 0, white, b"none")  # fmt: skip
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


def linear_grey():
    """Returns a linear grey profile."""
    white = b"XYZ \0\0\0\0" + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, 0x0100)
    return profile(b"GRAY", b"mntr", [(b"wtpt", white), (b"kTRC", curve)])


def stored(path, image, data, **settings):
    image.save(path, icc_profile=data, **settings)
    return read_image(path).astype(int)


def to_srgb(light):
    return np.where(light < 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055) * 255


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_a_profile_is_applied(tmp_path, suffix):
    settings = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    shown = stored(tmp_path / f"x.{suffix}", Image.fromarray(PIXELS), swapped(), **settings)
    np.testing.assert_allclose(shown, PIXELS[..., [1, 0, 2]], atol=4 if suffix == "jpg" else 1)


def test_result_equals_littlecms(tmp_path):
    wide = bytearray(SRGB)
    image = Image.fromarray(PIXELS)
    count = struct.unpack(">I", wide[128:132])[0]
    for index in range(count):
        if wide[132 + 12 * index : 136 + 12 * index] == b"rXYZ":
            (offset,) = struct.unpack(">I", wide[136 + 12 * index : 140 + 12 * index])
            (x,) = struct.unpack(">I", wide[offset + 8 : offset + 12])
            wide[offset + 8 : offset + 12] = struct.pack(">I", x * 5 // 4)  # a redder red
    source = ImageCms.ImageCmsProfile(io.BytesIO(bytes(wide)))
    expected = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"))
    shown = stored(tmp_path / "x.png", image, bytes(wide))
    np.testing.assert_array_equal(shown, np.asarray(expected))
    assert np.abs(shown - PIXELS).max() > 20


def test_srgb_profiles_keep_every_bit(tmp_path):
    np.testing.assert_array_equal(stored(tmp_path / "x.png", Image.fromarray(PIXELS), SRGB), PIXELS)


def test_a_grey_profile_is_applied_with_8_and_16_bits_and_transparency(tmp_path):
    ramp = np.tile(np.arange(10, 256, 5, dtype=np.uint8), (3, 1))  # in black the library itself is coarse
    expected = to_srgb(ramp / 255)[..., None]
    np.testing.assert_allclose(stored(tmp_path / "8.png", Image.fromarray(ramp), linear_grey()) - expected, 0, atol=2)
    sixteen = Image.fromarray(ramp.astype(np.uint16) * 257)
    np.testing.assert_allclose(stored(tmp_path / "16.png", sixteen, linear_grey()) - expected, 0, atol=2)
    with_alpha = Image.merge("LA", (Image.fromarray(ramp), Image.fromarray(np.where(ramp < 100, 0, 255).astype("u1"))))
    shown = stored(tmp_path / "a.png", with_alpha, linear_grey())
    np.testing.assert_allclose(shown - np.where(ramp[..., None] < 100, 255, expected), 0, atol=2)


def test_a_profile_is_applied_to_palettes_and_with_transparency(tmp_path):
    flat = Image.fromarray(PIXELS // 64 * 64)
    palette = stored(tmp_path / "p.png", flat.quantize(64), swapped())
    np.testing.assert_allclose(palette, np.asarray(flat.quantize(64).convert("RGB"))[..., [1, 0, 2]], atol=1)
    seen = np.where(rows < 6, 0, 255).astype(np.uint8)
    rgba = Image.fromarray(np.concatenate([PIXELS, seen[..., None]], axis=-1))
    shown = stored(tmp_path / "a.png", rgba, swapped())
    np.testing.assert_allclose(shown, np.where(rows[..., None] < 6, 255, PIXELS[..., [1, 0, 2]]), atol=1)


def test_grey_with_an_rgb_profile_is_unchanged(tmp_path):
    grey = Image.fromarray(PIXELS[..., 0])
    np.testing.assert_allclose(stored(tmp_path / "x.png", grey, SRGB), PIXELS[..., [0, 0, 0]])


@pytest.mark.parametrize("damage", ["cut", "no profile", "of other colours", "noise"])
def test_an_unsuitable_profile_is_ignored(tmp_path, damage):
    wrong = {"cut": swapped()[:200], "no profile": b"hello", "of other colours": linear_grey()}
    wrong["noise"] = swapped()[:128] + np.random.default_rng(0).bytes(400)
    np.testing.assert_array_equal(stored(tmp_path / "x.png", Image.fromarray(PIXELS), wrong[damage]), PIXELS)
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    shown = stored(tmp_path / "x.tif", cmyk, swapped())
    np.testing.assert_array_equal(shown, np.asarray(cmyk.convert("RGB")))


def test_a_cmyk_profile_is_applied(tmp_path):
    """Returns a CMYK profile in which only black counts."""
    identity = b"".join(struct.pack(">i", 0x10000 if i % 4 == 0 else 0) for i in range(9))
    grid = b"".join(struct.pack(">BBB", 255 if k == 0 else 0, 128, 128) for _ in range(8) for k in range(2))
    line = bytes(range(256))
    table = b"mft1\0\0\0\0" + struct.pack(">BBBx", 4, 3, 2) + identity + line * 4 + grid + line * 3
    data = bytearray(profile(b"CMYK", b"prtr", [(b"A2B0", table)]))
    data[20:24] = b"Lab "
    inks = np.zeros((4, 5, 4), np.uint8)
    inks[..., 0], inks[2:, :, 3] = 200, 255
    image = Image.frombytes("CMYK", (5, 4), inks.tobytes())
    shown = stored(tmp_path / "x.tif", image, bytes(data))
    assert shown[:2].min() > 245 and shown[2:].max() < 10
    plain = stored(tmp_path / "plain.tif", image, None)
    assert plain[0, 0, 0] == 55  # without the profile the first ink counts
