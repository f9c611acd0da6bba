import errno
import hashlib
import io
import json
import os
import re
import struct
import weakref
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from flax_vae.convert.errors import ConversionError, FileError
from flax_vae.convert.files.whole_file import atomic_file
from flax_vae.convert.formats.safetensors import DTYPES, list_tensors, read_metadata, read_tensors, write_tensors

FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


def random_bits(seed: int, shape: tuple[int, ...], dtype) -> np.ndarray:
    """Any bit pattern at all: denormals, infinities and every kind of NaN included."""
    nbytes = np.dtype(dtype).itemsize * int(np.prod(shape))
    return np.frombuffer(np.random.default_rng(seed).bytes(nbytes), dtype).reshape(shape)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def header_of(content: bytes) -> dict:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def data_of(content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 + length :]


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
    digest = hashlib.sha256(data[8 + length :]).hexdigest()
    assert header["__metadata__"] == {"format": "pt", "data_sha256": digest}
    assert header["a"]["dtype"] == "F32" and header["a"]["shape"] == [4, 3]
    assert data[8 + length :] == np.array(array, order="C").tobytes()


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), st.sampled_from(list(DTYPES.values()))))
def test_the_file_is_that_of_the_library_but_for_the_metadata(tmp_path_factory, dtypes):
    dtypes.pop("__metadata__", None)
    tensors = {name: random_bits(1, (3,), "uint8").astype(dtype) for name, dtype in dtypes.items()}
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    write_tensors(path, tensors)
    ours, theirs = path.read_bytes(), safetensors.numpy.save(tensors)
    assert data_of(ours) == data_of(theirs)
    header, expected = header_of(ours), header_of(theirs)
    assert header.pop("__metadata__").keys() == {"data_sha256"}
    assert header == expected and list(header) == list(expected)
    assert len(ours) % 8 == len(theirs) % 8  # the data begin at a multiple of eight
    with safetensors.safe_open(path, framework="np") as file:
        assert sorted(file.keys()) == sorted(tensors)


def test_arrays_that_were_read_outlive_the_replacement_of_their_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": np.ones(100_000)})
    array = read_tensors(path)["a"]
    write_tensors(path, {"a": array + 1}, force=True)
    assert np.array_equal(array, np.ones(100_000))
    path.unlink()
    assert np.array_equal(array, np.ones(100_000))


def test_arrays_that_were_read_cannot_be_written_to(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"a": np.ones(3), "empty": np.ones((0, 3))})
    for array in read_tensors(tmp_path / "a.safetensors").values():
        assert not array.flags.writeable


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    made, most = [], []

    class Large:
        shape, dtype = (10,), np.dtype("float32")

        def __array__(self, dtype=None, copy=None):
            array = np.ones(10, np.float32)
            made.append(weakref.ref(array))
            most.append(sum(reference() is not None for reference in made))
            return array

    write_tensors(tmp_path / "a.safetensors", {str(i): Large() for i in range(10)})
    assert len(most) == 10 and max(most) <= 2
    assert len(read_tensors(tmp_path / "a.safetensors")) == 10


def test_flipped_bits_are_found(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": random_bits(3, (40,), np.float32)})
    whole = path.read_bytes()
    start = len(whole) - 160
    for position in (start, start + 77, len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with pytest.raises(FileError, match="the data have SHA-256 .*copy the file again.*the entry 'data_sha256'"):
            read_tensors(path)
        assert read_tensors(path, verify=False)["a"].tobytes() != whole[start:]
    path.write_bytes(whole)
    assert read_tensors(path)["a"].tobytes() == whole[start:]


@pytest.mark.parametrize("metadata", [{}, {"format": "pt", "licence": 'é\n"0"' + "0" * 64, "data_sha256": "stale"}])
def test_metadata_return(tmp_path, metadata):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"0" * 64: np.ones(3)}, metadata=metadata)
    assert read_metadata(path).keys() == {"data_sha256", *metadata}
    assert {k: v for k, v in read_metadata(path).items() if k != "data_sha256"} == {
        k: v for k, v in metadata.items() if k != "data_sha256"
    }
    assert np.array_equal(read_tensors(path)["0" * 64], np.ones(3))  # so the digest stands in the right place


@pytest.mark.parametrize(
    ("names", "metadata", "complaint"),
    [
        (["\ud800"], {}, "cannot be called '.ud800'"),
        ([3], {}, "cannot be called 3"),
        (["a"], {"steps": 3}, "metadata 'steps': 3 cannot be stored"),
        (["a"], {"x": "\ud800"}, "cannot be stored"),
        (["a"], {"x": "y" * 100_000_000}, "a safetensors header holds 16,000,000"),
    ],
    ids=["surrogate", "number", "number in metadata", "surrogate in metadata", "endless"],
)
def test_text_that_a_header_cannot_hold_is_refused(tmp_path, names, metadata, complaint):
    with pytest.raises(ConversionError, match=complaint):
        write_tensors(tmp_path / "a.safetensors", {name: np.ones(1) for name in names}, metadata=metadata)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "array", [np.array("text"), np.array([None]), np.zeros(2, np.complex128), np.zeros(2, "m8[s]")], ids=repr
)
def test_dtypes_that_cannot_be_stored_are_refused(tmp_path, array):
    with pytest.raises(
        ConversionError, match=rf"'a' has dtype {re.escape(str(array.dtype))}.*cast it to one of uint64, "
    ):
        write_tensors(tmp_path / "a.safetensors", {"fine": np.zeros(3), "a": array})
    assert names_in(tmp_path) == []


def test_the_reserved_name_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="__metadata__.*rename it"):
        write_tensors(tmp_path / "a.safetensors", {"__metadata__": np.zeros(3)})
    assert names_in(tmp_path) == []


def test_a_dtype_that_numpy_lacks_is_listed_but_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    header = json.dumps({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 2)
    assert list_tensors(path) == {"a": ((4,), "F4")}
    with pytest.raises(FileError, match="'a' has dtype F4, which numpy cannot hold; store it as"):
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


def safetensors_bytes(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype='"F32"', shape="[1]", offsets="[0,4]") -> str:
    return f'{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}'


GOOD = entry()
MALFORMED = {
    "empty": b"",
    "a pickle": b"\x80\x04\x95 a pickle",
    "a zip": b"PK\x03\x04" + b"\0" * 200,
    "text": b"{}" * 50,
    "ones": b"\xff" * 100,
    "no header": safetensors_bytes(""),
    "header longer than the file": safetensors_bytes("{}", length=100),
    "huge header length": safetensors_bytes("{}", length=2**63),
    "all of the address space": safetensors_bytes("{}", length=2**64 - 1),
    "no JSON": safetensors_bytes('{"a":'),
    "no UTF-8": safetensors_bytes(b'{"\xff":' + GOOD.encode() + b"}", b"\0" * 4),
    "a list": safetensors_bytes("[]"),
    "a tensor that is null": safetensors_bytes('{"a":null}'),
    "a tensor twice": safetensors_bytes(f'{{"a":{GOOD},"a":{GOOD}}}', b"\0" * 4),
    "a tensor twice, once escaped": safetensors_bytes(f'{{"a":{GOOD},"\\u0061":{GOOD}}}', b"\0" * 4),
    "metadata twice": safetensors_bytes(f'{{"__metadata__":{{}},"a":{GOOD},"__metadata__":{{}}}}', b"\0" * 4),
    "a key of the metadata twice": safetensors_bytes('{"__metadata__":{"a":"1","a":"2"}}'),
    "metadata that are no text": safetensors_bytes('{"__metadata__":{"a":1}}'),
    "unknown dtype": safetensors_bytes(f'{{"a":{entry(dtype=chr(34) + "F31" + chr(34))}}}', b"\0" * 4),
    "dtype that is no string": safetensors_bytes(f'{{"a":{entry(dtype="32")}}}', b"\0" * 4),
    "no dtype": safetensors_bytes('{"a":{"shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    "negative shape": safetensors_bytes(f'{{"a":{entry(shape="[-1]")}}}', b"\0" * 4),
    "fractional shape": safetensors_bytes(f'{{"a":{entry(shape="[1.5]")}}}', b"\0" * 4),
    "shape that overflows": safetensors_bytes(f'{{"a":{entry(shape=f"[{2**33},{2**33}]")}}}', b"\0" * 4),
    "shape larger than the data": safetensors_bytes(f'{{"a":{entry(shape="[2]")}}}', b"\0" * 4),
    "negative offsets": safetensors_bytes(f'{{"a":{entry(offsets="[-4,0]")}}}', b"\0" * 4),
    "offsets reversed": safetensors_bytes(f'{{"a":{entry(offsets="[4,0]")}}}', b"\0" * 4),
    "offsets behind the end": safetensors_bytes(f'{{"a":{entry(offsets="[400,404]")}}}', b"\0" * 4),
    "three offsets": safetensors_bytes(f'{{"a":{entry(offsets="[0,4,8]")}}}', b"\0" * 8),
    "overlapping tensors": safetensors_bytes(f'{{"a":{GOOD},"b":{GOOD}}}', b"\0" * 4),
    "a hole between tensors": safetensors_bytes(f'{{"a":{GOOD},"b":{entry(offsets="[8,12]")}}}', b"\0" * 12),
    "bytes behind the last tensor": safetensors_bytes(f'{{"a":{GOOD}}}', b"\0" * 5),
    "data cut short": safetensors_bytes(f'{{"a":{GOOD}}}', b"\0" * 3),
    "nested without end": safetensors_bytes('{"a":' * 100_000),
    "bytes behind the JSON": safetensors_bytes(f'{{"a":{GOOD}}} x', b"\0" * 4),
}


REFUSED = "a.safetensors is (a (pickle|zip).*, not a|not a complete) safetensors file( .*: copy or write it again)?"


@pytest.mark.parametrize("read", [read_tensors, list_tensors, read_metadata])
@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_malformed_files_are_refused(tmp_path, content, read):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileError, match=REFUSED):
        read(path)
    path.write_bytes(safetensors_bytes(f'{{"a":{GOOD}}}', b"\0" * 4))
    read(path)


def refuses_or_reads(path: Path) -> None:
    """Neither another error nor a crash; and what is read can be used."""
    try:
        for array in read_tensors(path).values():
            array.tobytes()
    except FileError as error:
        assert str(path) in str(error)


@given(st.binary(max_size=300))
def test_random_bytes_are_refused_in_one_way(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    path.write_bytes(content)
    refuses_or_reads(path)
    path.write_bytes(safetensors_bytes(content))
    refuses_or_reads(path)


@given(st.data())
def test_mutated_files_are_refused_in_one_way(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    tensors = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones((2, 2), ml_dtypes.bfloat16), "c": np.array(True)}
    if data.draw(st.booleans(), "by us"):
        write_tensors(path, tensors, metadata={"format": "pt"})
        content = bytearray(path.read_bytes())
    else:
        content = bytearray(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["replace", "insert", "delete"]))
        piece = data.draw(st.binary(min_size=1, max_size=3) | st.sampled_from([b'"', b"{", b"}", b"9", b"-", b"\\"]))
        content[position : position + (0 if change == "insert" else len(piece))] = b"" if change == "delete" else piece
    path.write_bytes(content)
    refuses_or_reads(path)


shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(
    kinds=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(list(DTYPES.values())), shapes, st.integers(0, 2**32)),
        max_size=6,
    )
)
def test_any_arrays_return_bit_for_bit(tmp_path_factory, kinds):
    tensors = {
        name: random_bits(seed, shape, "uint8").astype(bool) if dtype == "bool" else random_bits(seed, shape, dtype)
        for name, (dtype, shape, seed) in kinds.items()
    }
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    write_tensors(path, tensors)
    back = read_tensors(path)
    assert list(back) == sorted(tensors)
    assert all(same_bits(back[name], array) for name, array in tensors.items())


@pytest.mark.parametrize("read", [read_tensors, list_tensors])
def test_missing_files_and_folders_are_told_apart(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="absent.safetensors does not exist"):
        read(tmp_path / "absent.safetensors")
    with pytest.raises(FileError, match="is a folder; expected a regular file"):
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
@pytest.mark.parametrize(
    "stage",
    [
        "flax_vae.convert.formats.safetensors._write_data",
        "flax_vae.convert.files.whole_file.sync_file",
        "flax_vae.convert.files.whole_file.Path.replace",
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_in_the_middle_leaves_everything_as_it_was(tmp_path, monkeypatch, failure, stage, existing):
    path = tmp_path / "a.safetensors"
    if existing:
        write_tensors(path, {"a": np.zeros(3)})
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}

    def fail(*args, **kwargs):
        if stage.endswith("_write_data"):
            args[0].write(b"half of it")  # as a full disk leaves it
        raise failure

    monkeypatch.setattr(stage, fail)
    with pytest.raises(type(failure)):
        write_tensors(path, {"a": np.ones(3)}, force=True)
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("room", [0, 100, 1000, 900_000])
def test_a_full_disk_costs_nothing(tmp_path, monkeypatch, room, existing):
    path = tmp_path / "a.safetensors"
    if existing:
        write_tensors(path, {"a": np.zeros(3)})
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}

    class FullDisk(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode: io.BufferedWriter(FullDisk(self, mode)))
        with pytest.raises(OSError, match="a.safetensors could not be written: No space left") as caught:
            write_tensors(path, {str(i): np.ones(20_000, np.float32) for i in range(20)}, force=True)
    assert caught.value.errno == errno.ENOSPC
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
    with atomic_file(path) as temporary:
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
