"""Small files that would cost gigabytes or hours: each is refused at once, before the cost."""

import io
import json
import os
import pickle
import struct
import time
import zipfile
from dataclasses import replace

import pytest

from flax_vae.convert import PRESETS
from flax_vae.convert.errors import FileError
from flax_vae.convert.files.json import loads_object, read_object
from flax_vae.convert.files.regular import read_bytes, require_regular
from flax_vae.convert.formats.header import read_header
from flax_vae.convert.formats.pickle_bounds import check_bounds
from flax_vae.convert.formats.pytorch import read_pickle
from flax_vae.convert.table.rows import expand


@pytest.fixture(autouse=True)
def at_once():
    start = time.process_time()
    yield
    assert time.process_time() - start < 10  # seconds; a tenth of that is used, and minutes were


def safetensors(header: dict, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def archive(path, members: dict[str, bytes], compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as packed:
        for name, content in members.items():
            packed.writestr(f"archive/{name}", content)
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
@pytest.mark.parametrize("read", [require_regular, read_object, read_header, read_pickle])
def test_a_pipe_is_not_opened(tmp_path, read):
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(FileError, match="a pipe, a socket or a device; expected a regular file"):
        read(tmp_path / "a.pt")


def test_a_link_to_a_file_is_one(tmp_path):
    (tmp_path / "a").write_bytes(b"{}")
    (tmp_path / "b").symlink_to("a")
    assert require_regular(tmp_path / "b") == 2 and read_object(tmp_path / "b") == {}


def test_sizes_are_bounded(tmp_path):
    (tmp_path / "a").write_bytes(bytes(11))
    assert read_bytes(tmp_path / "a", 11) == bytes(11)
    with pytest.raises(FileError, match="has 11 bytes; expected at most 10"):
        read_bytes(tmp_path / "a", 10)


def test_many_equal_names_are_counted_once():
    with pytest.raises(ValueError, match="names 'k0', 'k1', 'k10' and 79,997 more more than once"):
        loads_object(b"{" + b",".join(b'"k%d":1,"k%d":1' % (i, i) for i in range(80_000)) + b"}")


@pytest.mark.parametrize(
    ("field", "value", "most"),
    [
        ("num_res_blocks", 10**7, "at most 64"),
        ("ch", 32 * 10**9, "at most 65,536"),
        ("resolution", 10**5000, r"a number of 16610 bits must be at most 65,536"),
        ("ch_mult", (1,) * 13, "13 levels; expected at most 12"),
        ("ch_mult", (1, 4096), "a level of 262,144 channels"),
        ("time_emb_dim", 10**9, "at most 65,536"),
        ("time_emb_dim", 1e308, "must be a whole number"),
    ],
    ids=["blocks", "channels", "digits", "levels", "width", "time", "a float"],
)
def test_architectures_have_upper_bounds(field, value, most):
    with pytest.raises(ValueError, match=f"{field}.*{most}"):
        replace(PRESETS["seed"], **{field: value})


def test_the_largest_architecture_has_a_table():
    largest = replace(PRESETS["seed"], ch=32, ch_mult=(1,) * 12, num_res_blocks=64, resolution=2048)
    assert len(expand(largest)) > 30_000


@pytest.mark.parametrize(
    "shape", [(1,) * 65, (0,) * 100_000, (0, 2**62, 2**62)], ids=["65 dimensions", "a hundred thousand", "0 x 2**124"]
)
def test_shapes_that_no_array_has_are_refused(tmp_path, shape):
    stop = 4 if 0 not in shape else 0
    content = safetensors({"a": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, stop]}}, bytes(stop))
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(FileError, match="a.safetensors"):
        read_header(tmp_path / "a.safetensors")


def test_a_header_of_many_names_is_refused_by_its_length(tmp_path):
    names = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)}
    (tmp_path / "a.safetensors").write_bytes(safetensors(names))
    with pytest.raises(FileError, match="its header takes .* bytes; expected at most 16,000,000"):
        read_header(tmp_path / "a.safetensors")


def test_archives_that_grow_are_refused(tmp_path):
    path = archive(tmp_path / "a.pt", {"data.pkl": pickle.dumps({}, 2), "data/0": bytes(1 << 28)})
    with pytest.raises(ValueError, match="grows from .* to 268,435,456 bytes"):
        check_bounds(path)


def test_long_pickles_are_refused(tmp_path):
    path = archive(tmp_path / "a.pt", {"data.pkl": bytes(9 << 20)}, zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match="its pickle has 9,437,184 bytes"):
        check_bounds(path)


def nested_tuples(levels: int) -> bytes:
    """A pickle of tuples of two, each twice the one before: `levels` lines for 2**levels items."""
    pieces = [b"\x80\x02)"]
    for level in range(levels):
        pieces.append(b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86")
    return b"".join(pieces) + b"."


def test_tuples_that_hold_each_other_are_refused(tmp_path):
    check_bounds(archive(tmp_path / "a.pt", {"data.pkl": nested_tuples(10)}))
    with pytest.raises(ValueError, match="a tuple of more than 1,000,000 items"):
        check_bounds(archive(tmp_path / "b.pt", {"data.pkl": nested_tuples(35)}))


@pytest.mark.torch
def test_bounds_pass_what_pytorch_writes(tmp_path):
    import torch

    content = {f"layer.{i}.weight": torch.ones(3, 3) for i in range(2000)} | {"sizes": (1, (2, 3))}
    for name, zipped in (("a.pt", True), ("b.pt", False)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        check_bounds(tmp_path / name)


@pytest.mark.torch
def test_tensors_that_repeat_one_number_are_refused(tmp_path):
    import torch

    buffer = io.BytesIO()
    torch.save({"a": torch.ones(1).expand(1 << 30)}, buffer)
    (tmp_path / "a.pt").write_bytes(buffer.getvalue())
    with pytest.raises(FileError, match="a tensor of 1,073,741,824 elements, of which 4 bytes are stored"):
        read_pickle(tmp_path / "a.pt")
