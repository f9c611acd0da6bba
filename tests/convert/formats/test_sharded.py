import json
from pathlib import Path

import numpy as np
import pytest

from flax_vae.convert.errors import FileError
from flax_vae.convert.formats.safetensors import write_tensors
from flax_vae.convert.formats.sharded import read_shards

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def index(tmp_path) -> Path:
    folder = tmp_path / "model"
    write_tensors(folder / ONE, {"a": np.arange(3.0), "c": np.ones((2, 2), np.float16)})
    write_tensors(folder / TWO, {"b": np.array(5)})
    return write_index(folder, {"a": ONE, "c": ONE, "b": TWO})


def write_index(folder: Path, places: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 40}, "weight_map": places}))
    return path


def test_all_shards_together(index):
    tensors = read_shards(index)
    assert {name: array.tolist() for name, array in tensors.items()} == {"a": [0, 1, 2], "b": 5, "c": [[1, 1], [1, 1]]}
    assert list(tensors) == ["a", "b", "c"] and tensors["c"].dtype == np.float16


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.safetensors", "/etc/secret.safetensors", "inner/secret.safetensors", "..", ".", ""),
        *("..\\secret.safetensors", "C:secret.safetensors", "secret.safetensors\0.safetensors", "passwd"),
    ],
)
def test_only_plain_names_are_followed(index, tmp_path, name):
    write_tensors(tmp_path / "secret.safetensors", {"b": np.array(5)})
    write_tensors(index.parent / "inner" / "secret.safetensors", {"b": np.array(5)})
    write_index(index.parent, {"a": ONE, "c": ONE, "b": name})
    with pytest.raises(FileError, match="expected the plain name of a .safetensors file beside the index"):
        read_shards(index)


def test_links_out_of_the_folder_are_not_followed(index, tmp_path):
    (index.parent / TWO).rename(tmp_path / "secret.safetensors")
    (index.parent / TWO).symlink_to("../secret.safetensors")
    with pytest.raises(FileError, match="00002.safetensors is a link to .*secret.safetensors, outside its folder"):
        read_shards(index)


def test_links_within_the_folder_are_followed(index):
    (index.parent / TWO).rename(index.parent / "other.safetensors")
    (index.parent / TWO).symlink_to("other.safetensors")
    assert read_shards(index)["b"] == 5


@pytest.mark.parametrize("inner", [".", "vae"])
def test_the_cache_of_the_hub_links_to_its_blobs(index, tmp_path, inner):
    folder, blobs = tmp_path / "models--x" / "snapshots" / "abc" / inner, tmp_path / "models--x" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(index.parent.iterdir())):
        file.rename(blobs / str(number))
        (folder / file.name).symlink_to(blobs / str(number))
    assert read_shards(folder / index.name)["b"] == 5


def test_an_index_may_be_a_link(index, tmp_path):
    (tmp_path / index.name).symlink_to(index)
    with pytest.raises(FileError, match="names the shard .* which does not exist"):
        read_shards(tmp_path / index.name)


def test_every_difference_is_listed_at_once(index):
    write_index(index.parent, {"a": TWO, "b": TWO, "d": ONE})
    with pytest.raises(FileError) as caught:
        read_shards(index)
    assert str(caught.value).splitlines()[1:] == [
        f"  missing     d is not in {ONE}",
        f"  unexpected  a is in {ONE}, and belongs in {TWO}",
        f"  unexpected  c is in {ONE}, and is not in the index",
        f"  missing     a is not in {TWO}",
        "download them again",
    ]


def test_a_tensor_in_two_shards_is_refused(index):
    write_tensors(index.parent / TWO, {"a": np.arange(3.0), "b": np.array(5)}, force=True)
    with pytest.raises(FileError, match=f"unexpected  a is in {TWO}, and belongs in {ONE}"):
        read_shards(index)


@pytest.mark.parametrize("shard", [ONE, TWO])
def test_every_shard_is_checked(index, shard):
    whole = (index.parent / shard).read_bytes()
    (index.parent / shard).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FileError, match=f"{shard}: the data have SHA-256"):
        read_shards(index)
    read_shards(index, verify=False)
    (index.parent / shard).write_bytes(whole[:-1])
    with pytest.raises(FileError, match=f"{shard} is not a complete safetensors file"):
        read_shards(index)
    (index.parent / shard).unlink()
    with pytest.raises(FileError, match=f"names the shard '{shard}', which does not exist"):
        read_shards(index)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "Expecting value"),
        (b"{}", "no 'weight_map'"),
        (b'{"weight_map": {}}', "no 'weight_map'"),
        (b'{"weight_map": ["a"]}', "no 'weight_map'"),
        (b'{"weight_map": {"a": 3}}', "places 'a' in 3, which is not a file name"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "names 'a' more than once"),
        (b"\xff", "decode"),
    ],
    ids=range(7),
)
def test_a_damaged_index_is_refused(index, content, complaint):
    index.write_bytes(content)
    with pytest.raises(FileError, match=f"is not the index of safetensors files: .*{complaint}"):
        read_shards(index)


def test_a_missing_index_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        read_shards(tmp_path / "absent")
