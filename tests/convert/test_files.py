import json
import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from convert.errors import ConversionError, FileError
from convert.files import DTYPES, list_tensors, new_file, read_tensors, write_tensors

FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


def random_bits(seed: int, shape: tuple[int, ...], dtype) -> np.ndarray:
    """Any bit pattern at all: denormals, infinities and every kind of NaN included."""
    nbytes = np.dtype(dtype).itemsize * int(np.prod(shape))
    return np.frombuffer(np.random.default_rng(seed).bytes(nbytes), dtype).reshape(shape)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5, 7), (3, 3, 4, 6)], ids=str)
def test_floats_return_bit_for_bit(tmp_path, dtype, shape):
    array = random_bits(0, shape, dtype)
    write_tensors(tmp_path / "a.safetensors", {"a": array})
    assert same_bits(read_tensors(tmp_path / "a.safetensors")["a"], array)


@pytest.mark.parametrize("name", DTYPES.values())
def test_every_listed_dtype_returns(tmp_path, name):
    array = np.array([0, 1, 1, 0, 1]).astype(name)
    write_tensors(tmp_path / "a.safetensors", {"a": array})
    assert same_bits(read_tensors(tmp_path / "a.safetensors")["a"], array)
    assert list_tensors(tmp_path / "a.safetensors") == {"a": ((5,), name)}


@given(
    axes=st.permutations(range(4)),
    steps=st.tuples(*[st.sampled_from([1, 2, -1, -2])] * 4),
    dtype=st.sampled_from(FLOATS),
)
def test_any_memory_order_is_stored_by_value(tmp_path_factory, axes, steps, dtype):
    view = np.transpose(random_bits(1, (4, 3, 5, 2), dtype), axes)[tuple(slice(None, None, step) for step in steps)]
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    write_tensors(path, {"a": view})
    assert same_bits(read_tensors(path)["a"], np.array(view, order="C"))


def test_the_library_alone_would_store_wrong_values(tmp_path):
    # If this fails, the library was mended and the copy in `_dense` may go.
    view = np.arange(6.0).reshape(2, 3).T
    safetensors.numpy.save_file({"a": view}, tmp_path / "a.safetensors")
    assert not np.array_equal(safetensors.numpy.load_file(tmp_path / "a.safetensors")["a"], view)


def test_broadcast_and_foreign_byte_order_are_stored_by_value(tmp_path):
    broadcast = np.broadcast_to(np.float32(3), (2, 4))
    big_endian = np.arange(5, dtype=">f4")
    write_tensors(tmp_path / "a.safetensors", {"broadcast": broadcast, "big": big_endian})
    back = read_tensors(tmp_path / "a.safetensors")
    assert np.array_equal(back["broadcast"], broadcast)
    assert np.array_equal(back["big"], big_endian) and back["big"].dtype.isnative


def test_other_readers_see_the_same(tmp_path):
    array = random_bits(2, (3, 4), np.float32).T
    write_tensors(tmp_path / "a.safetensors", {"a": array}, metadata={"format": "pt"})
    data = (tmp_path / "a.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert header["__metadata__"] == {"format": "pt"}
    assert header["a"]["dtype"] == "F32" and header["a"]["shape"] == [4, 3]
    assert data[8 + length :] == np.array(array, order="C").tobytes()


def test_arrays_that_were_read_are_independent_of_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.ones(1000)})
    array = read_tensors(path)["a"]
    path.write_bytes(b"\0" * path.stat().st_size)
    assert np.array_equal(array, np.ones(1000))


@pytest.mark.parametrize("array", [np.array("text"), np.array([None]), np.zeros(2, np.complex128)], ids=repr)
def test_dtypes_that_cannot_be_stored_are_refused(tmp_path, array):
    with pytest.raises(ConversionError, match=f"'a' has dtype {array.dtype}.*cast it to one of float64, "):
        write_tensors(tmp_path / "a.safetensors", {"fine": np.zeros(3), "a": array})
    assert names_in(tmp_path) == []


def test_the_reserved_name_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="__metadata__.*rename it"):
        write_tensors(tmp_path / "a.safetensors", {"__metadata__": np.zeros(3)})
    assert names_in(tmp_path) == []


def test_a_dtype_that_numpy_lacks_is_listed_but_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    assert list_tensors(path) == {"a": ((4,), "F8_E4M3")}
    with pytest.raises(FileError, match="'a' has dtype F8_E4M3, which numpy cannot hold; store it as"):
        read_tensors(path)


@pytest.mark.parametrize("read", [read_tensors, list_tensors])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, read):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.arange(6.0), "b": np.ones((2, 2), ml_dtypes.bfloat16)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match="a.safetensors is not a complete safetensors file.*copy or write it again"):
            read(path)
    path.write_bytes(whole)
    assert sorted(read(path)) == ["a", "b"]


@pytest.mark.parametrize("content", [b"\x80\x04\x95 a pickle", b"PK\x03\x04" + b"\0" * 200, b"{}" * 50, b"\xff" * 100])
def test_other_formats_are_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(FileError, match="not a complete safetensors file"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize("read", [read_tensors, list_tensors])
def test_missing_files_and_folders_are_told_apart(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="absent.safetensors does not exist"):
        read(tmp_path / "absent.safetensors")
    with pytest.raises(FileError, match="is a folder; give the name of a safetensors file"):
        read(tmp_path)


def test_an_existing_file_is_kept_unless_forced(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.zeros(3)})
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists already; replace it with force=True"):
        write_tensors(path, {"a": np.ones(3)})
    assert path.read_bytes() == before
    write_tensors(path, {"a": np.ones(3)}, force=True)
    assert np.array_equal(read_tensors(path)["a"], np.ones(3))
    assert names_in(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_is_never_replaced_by_a_file(tmp_path, force):
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file"):
        write_tensors(tmp_path, {"a": np.zeros(3)}, force=force)


def test_missing_folders_are_made(tmp_path):
    write_tensors(tmp_path / "x" / "y" / "a.safetensors", {"a": np.zeros(3)})
    assert names_in(tmp_path / "x" / "y") == ["a.safetensors"]


def test_a_link_keeps_pointing_to_the_file(tmp_path):
    (tmp_path / "disk").mkdir()
    write_tensors(tmp_path / "disk" / "a.safetensors", {"a": np.zeros(3)})
    link = tmp_path / "link.safetensors"
    link.symlink_to(tmp_path / "disk" / "a.safetensors")
    write_tensors(link, {"a": np.ones(3)}, force=True)
    assert link.is_symlink()
    assert np.array_equal(read_tensors(tmp_path / "disk" / "a.safetensors")["a"], np.ones(3))


@pytest.mark.parametrize("failure", [OSError("no space left"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("stage", ["save_file", "sync_file", "Path.replace"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_in_the_middle_leaves_everything_as_it_was(tmp_path, monkeypatch, failure, stage, existing):
    path = tmp_path / "a.safetensors"
    if existing:
        write_tensors(path, {"a": np.zeros(3)})
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}

    def fail(*args, **kwargs):
        if stage == "save_file":
            Path(args[1]).write_bytes(b"half of it")  # as a full disk leaves it
        raise failure

    monkeypatch.setattr(f"convert.files.{stage}", fail)
    with pytest.raises(type(failure)):
        write_tensors(path, {"a": np.ones(3)}, force=True)
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append("fsync"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("replace"), replace(self, to))[1])
    write_tensors(tmp_path / "a.safetensors", {"a": np.zeros(3)})
    assert events[:2] == ["fsync", "replace"]


def test_new_file_is_invisible_until_the_block_ends(tmp_path):
    path = tmp_path / "notes.txt"
    with new_file(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists() and temporary.parent == tmp_path
    assert path.read_text() == "whole"
    assert names_in(tmp_path) == ["notes.txt"]


def test_a_new_file_can_be_read_by_whom_the_user_allows(tmp_path):
    (tmp_path / "usual").touch()
    write_tensors(tmp_path / "a.safetensors", {"a": np.zeros(3)})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_disk_that_fills_up_costs_nothing(tmp_path):
    resource = pytest.importorskip("resource", reason="only POSIX can limit the size of files")
    write_tensors(tmp_path / "a.safetensors", {"a": np.zeros(3)})
    before = (tmp_path / "a.safetensors").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="a.safetensors could not be written: .*too large"):
            write_tensors(tmp_path / "a.safetensors", {"a": np.zeros(100_000)}, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path) == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == before
