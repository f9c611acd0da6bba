import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization
from hypothesis import given
from hypothesis import strategies as st

from flax_vae.convert.errors import FileError
from flax_vae.convert.formats.lazy import Deferred
from flax_vae.convert.formats.msgpack import read_msgpack, write_msgpack

TREE = {
    "encoder": {"conv_in": {"kernel": np.arange(12.0).reshape(1, 1, 3, 4), "bias": np.ones(4, np.float32)}},
    "half": np.arange(3, dtype=np.float16),
    "brain": np.arange(3, dtype=ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
    "steps": np.array(7),
    "scalar": np.float32(2.5),
}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_what_flax_wrote_returns_bit_for_bit(tmp_path):
    path = tmp_path / "diffusion_flax_model.msgpack"
    path.write_bytes(serialization.msgpack_serialize(TREE))
    found = read_msgpack(path)
    assert list(found) == sorted(["encoder/conv_in/kernel", "encoder/conv_in/bias", *(set(TREE) - {"encoder"})])
    assert same_bits(found["encoder/conv_in/kernel"], TREE["encoder"]["conv_in"]["kernel"])
    assert all(same_bits(found[name], np.asarray(TREE[name])) for name in TREE if name != "encoder")
    assert not any(array.flags.writeable for array in found.values())


def test_large_arrays_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)  # a gibibyte in earnest
    tree = {"x": {"large": np.arange(99.0).reshape(3, 33), "small": np.ones(2)}}
    (tmp_path / "a.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    assert b"__msgpack_chunked_array__" in (tmp_path / "a.msgpack").read_bytes()
    assert same_bits(read_msgpack(tmp_path / "a.msgpack")["x/large"], tree["x"]["large"])


@pytest.mark.parametrize("largest", [2**30, 64])
def test_flax_reads_what_we_write(tmp_path, monkeypatch, largest):
    monkeypatch.setattr("flax_vae.convert.formats.msgpack._LARGEST", largest)
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", largest)
    path = tmp_path / "new" / "diffusion_flax_model.msgpack"
    there = TREE | {"scalar": np.asarray(TREE["scalar"]), "lazy": np.ones(2, "f4")}
    write_msgpack(path, there | {"lazy": Deferred((2,), np.dtype("f4"), lambda: np.ones(2, "f4"))})
    assert path.read_bytes() == serialization.to_bytes(there)
    found = serialization.msgpack_restore(path.read_bytes())
    assert same_bits(found["encoder"]["conv_in"]["kernel"], TREE["encoder"]["conv_in"]["kernel"])
    assert all(same_bits(found[name], there[name]) for name in there if name != "encoder")
    with pytest.raises(FileExistsError):
        write_msgpack(path, TREE)


def array(shape=(2,), dtype: object = "float32", content=b"\0" * 8, code=1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, content)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", ""),
        (b"\xc1", ""),
        (msgpack.packb([1]), "it holds a list"),
        (msgpack.packb({"a": 3}), "a is a int, not an array"),
        (msgpack.packb({"a": {"b": "text"}}), "a/b is a str, not an array"),
        (msgpack.packb({"a": [array()]}), "a is a list, not an array"),
        (msgpack.packb({"a/b": array()}), "not the name of a parameter"),
        (msgpack.packb({"": array()}), "not the name of a parameter"),
        (msgpack.packb({b"a": array()}), "not the name of a parameter"),
        (msgpack.packb({3: array()}), ""),
        (msgpack.packb({"a": array()}) + b"\0", "1 bytes follow its end"),
        (b"\x82" + 2 * (msgpack.packb("a") + msgpack.packb(array())), "names something more than once"),
        (msgpack.packb({"a": array(code=2)}), "extension of code 2"),
        (msgpack.packb({"a": array(dtype="object")}), "dtype 'object'"),
        (msgpack.packb({"a": array(dtype="|O8")}), "dtype"),
        (msgpack.packb({"a": array(dtype=7)}), ""),
        (msgpack.packb({"a": array(shape=(3,))}), "has 8 bytes, not 12"),
        (msgpack.packb({"a": array(shape=(-2,))}), "shape"),
        (msgpack.packb({"a": array(shape=(2**62, 2**62))}), "bytes"),
        (msgpack.packb({"a": array(shape="2")}), "shape"),
        (msgpack.packb({"a": msgpack.ExtType(1, b"\x93")}), ""),
        (msgpack.packb({"a": {"__msgpack_chunked_array__": True}}), "KeyError"),
        (msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {}, "chunks": {}}}), ""),
        (b"\x81\xa1a" * 100_000, ""),
        (b"\xdf\xff\xff\xff\xff", ""),
    ],
    ids=range(25),
)
def test_malformed_files_are_refused(tmp_path, content, complaint):
    path = tmp_path / "a.msgpack"
    path.write_bytes(content)
    with pytest.raises(
        FileError, match=f"is not a complete msgpack file of Flax .*{complaint}.*copy or write it again"
    ):
        read_msgpack(path)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.msgpack"
    whole = serialization.msgpack_serialize({"a": {"b": np.ones(3)}, "c": np.zeros((2, 2), np.float32)})
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match="copy or write it again"):
            read_msgpack(path)


@given(st.data())
def test_mutated_files_are_refused_in_one_way(tmp_path_factory, data):
    content = bytearray(serialization.msgpack_serialize({"a": {"b": np.ones(3)}, "c": np.zeros((2, 2), np.float32)}))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    path = tmp_path_factory.mktemp("files") / "a.msgpack"
    path.write_bytes(content)
    try:
        for leaf in read_msgpack(path).values():
            leaf.tobytes()
    except FileError as error:
        assert str(path) in str(error)


def test_missing_files_and_folders_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        read_msgpack(tmp_path / "absent")
    with pytest.raises(FileError, match="is a folder"):
        read_msgpack(tmp_path)
