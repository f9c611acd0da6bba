"""Tests of array files, including ones whose headers claim more data than they hold."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flax_vae.images.sources.arrays import load_array
from flax_vae.train.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def npz(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def saved(save=np.savez, **arrays) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def encrypted() -> bytes:
    content = bytearray(saved(images=IMAGES))
    content[6] |= 1
    content[content.find(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


BAD = {
    "empty": (b"", ""),
    "not a zip archive": (b"PK\x03\x04hello", ""),
    "cut short": (saved(images=IMAGES)[:-300], ""),
    "no arrays": (npz({"readme.txt": b"hi"}), "of its 0 arrays none is called images"),
    "encrypted": (encrypted(), "is encrypted"),
    "pickled": (saved(images=np.array([{}], object)), "allow_pickle=False"),
    "claims terabytes": (npz({"images.npy": header((10**6, 1000, 1000, 3))}), r"claims the shape \(1000000, 1000"),
    "grows": (npz({"images.npy": header((64, 1024, 1024, 3)) + bytes(64 << 20)}), "grows from"),
    "npy claims terabytes": (header((10**6, 1000, 1000, 3)), "claims the shape"),
    "npy of negative length": (header((-1, 64, 64, 3)) + bytes(100), "claims the shape"),
    "npy header that is code": (b"\x93NUMPY\x01\x00" + struct.pack("<H", 900) + b"(" * 900, ""),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_file_is_refused(tmp_path, name):
    content, complaint = BAD[name]
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match=f"x.npz cannot be read as an array .*{complaint}"):
        load_array(tmp_path / "x.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_valid_file_is_read(tmp_path, save):
    (tmp_path / "x.npz").write_bytes(saved(save, images=IMAGES, labels=np.arange(3)))
    found = load_array(tmp_path / "x.npz")
    np.testing.assert_array_equal(found.images, IMAGES)
    np.testing.assert_array_equal(found.labels, np.arange(3))


@given(st.sampled_from([saved(images=IMAGES), saved(np.savez_compressed, images=IMAGES)]), st.data())
def test_a_changed_byte_is_an_error_or_leaves_the_images_unchanged(tmp_path_factory, content, data):
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    path.write_bytes(changed)
    try:
        found = load_array(path).images
    except DataError:
        return
    assert zlib.crc32(found.tobytes()) == zlib.crc32(IMAGES.tobytes())
