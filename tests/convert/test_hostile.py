"""Weights that are wrong, by chance or on purpose: one clear error each, nothing left behind, nothing overwritten."""

import errno
import json
import os
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flax_vae.convert import PRESETS, ConversionError, expand, to_flax
from flax_vae.convert.cli.main import main
from flax_vae.convert.formats.safetensors import write_tensors
from flax_vae.convert.table.identification import identify
from flax_vae.convert.table.rows import READABLE, translate
from flax_vae.convert.weights.folder import save_folder
from tests.convert.samples import everything_in

SMALL = replace(PRESETS["sdxl"], ch=32, ch_mult=(1, 1), num_res_blocks=1)


def weights(layout: str = "flux") -> dict[str, np.ndarray]:
    return {row.theirs: np.full(row.torch_shape, 0.5, np.float32) for row in expand(SMALL, layout)}


# The key map, with a random part of the keys changed at random.

TEXT = st.text(max_size=30) | st.sampled_from(
    ["encoder.conv_in.weight", "encoder", "bn.running_mean", "loss.x", "vae."]
)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["drop", "add", "rename", "reshape", "prefix"]),
        st.integers(0, 10_000),
        TEXT,
        st.lists(st.integers(0, 40), max_size=5).map(tuple),
    ),
    min_size=1,
    max_size=6,
)


def changed(tensors: dict[str, np.ndarray], changes) -> dict[str, np.ndarray]:
    for kind, place, text, shape in changes:
        names = sorted(tensors)
        name = names[place % len(names)] if names else ""
        some = np.broadcast_to(np.zeros((), np.float32), shape)
        if kind == "add":
            tensors[text] = some
        elif kind == "prefix":
            tensors = {text + key: tensor for key, tensor in tensors.items()}
        elif name and kind == "drop":
            del tensors[name]
        elif name and kind == "rename":
            tensors[text] = tensors.pop(name)
        elif name:
            tensors[name] = some
    return tensors


@settings(max_examples=400)
@given(layout=st.sampled_from(READABLE), changes=CHANGES)
def test_the_key_map_refuses_with_one_kind_of_error_or_understands_everything(layout, changes):
    tensors = changed(weights(layout), changes)
    for params in (None, SMALL):
        try:
            found = identify(tensors, params)
        except ConversionError as error:
            assert str(error)
        else:  # what it took is whole, and what it did not take is said
            assert {row.theirs for row in expand(found.params, found.layout)} == set(found.tensors)
            assert len(found.tensors) + len(found.left_out) == len(tensors)
    expected = {row.theirs: row.torch_shape for row in expand(SMALL, layout)}
    fits = {name: tensor.shape for name, tensor in tensors.items()} == expected
    for convert in (lambda: to_flax(tensors, SMALL, layout), lambda: translate(tensors, SMALL, layout, "flux")):
        try:
            convert()
        except ConversionError:
            assert not fits
        else:
            assert fits


# Files, through the command.


def truncated(path: Path) -> None:
    write_tensors(path, weights())
    path.write_bytes(path.read_bytes()[:-100])


def with_header(header: bytes, length: int | None = None) -> Callable[[Path], object]:
    data = struct.pack("<Q", len(header) if length is None else length) + header
    return lambda path: path.write_bytes(data + bytes(64))


def flipped(path: Path) -> None:
    write_tensors(path, weights())
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def index(shard: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps({"weight_map": {"encoder.conv_in.weight": shard}}))


def linked(path: Path) -> None:
    (path.parent.parent / "secret.safetensors").write_bytes(b"secret")
    (path.parent / "a.safetensors").symlink_to(path.parent.parent / "secret.safetensors")
    index("a.safetensors")(path)


class Code:
    def __reduce__(self):
        return (os.system, ("touch owned",))


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
TORCH = pytest.mark.torch
INDEX = "a.safetensors.index.json"
HOSTILE = {
    "empty": ("a.safetensors", lambda path: path.write_bytes(b""), "not a complete safetensors file"),
    "truncated": ("a.safetensors", truncated, "not a complete safetensors file"),
    "a header of another format": ("a.safetensors", with_header(b"\x80\x04K\x01."), "not a complete safetensors file"),
    "a header longer than the file": ("a.safetensors", with_header(b"{}", 1 << 40), "not a complete safetensors file"),
    "a name twice": ("a.safetensors", with_header(b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}"), "safetensors file"),
    "a flipped bit": ("a.safetensors", flipped, "the data have SHA-256"),
    "another model": (
        "a.safetensors",
        lambda path: write_tensors(path, {"lm_head.weight": np.ones((2, 2))}),
        "not the weights of an autoencoder",
    ),
    "a shard above": (INDEX, index("../secret.safetensors"), "the plain name of a .safetensors file"),
    "an absolute shard": (INDEX, index("/etc/secret.safetensors"), "the plain name of a .safetensors file"),
    "a missing shard": (INDEX, index("absent.safetensors"), "which does not exist"),
    "a linked shard": (INDEX, linked, "is a link to"),
    "an index of another format": (INDEX, lambda path: path.write_text("[]"), "is not the index of safetensors files"),
    "a cut msgpack": ("a.msgpack", lambda path: path.write_bytes(b"\x82\xa1a"), "not a complete msgpack file"),
    "an unknown suffix": ("a.h5", lambda path: path.write_bytes(b"\x89HDF"), "of an unknown kind"),
    "code": ("a.ckpt", lambda path: path.write_bytes(pickle.dumps(Code(), protocol=2)), "a.ckpt"),
    "a cut pickle": ("a.pt", lambda path: path.write_bytes(b"PK\x03\x04"), "a.pt"),
}
CASES = [
    pytest.param(*case, id=name, marks=[TORCH] if case[0].endswith(("ckpt", "pt")) else [])
    for name, case in HOSTILE.items()
]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("dst", ["new", "new.safetensors", "old", "old.safetensors"])
@pytest.mark.parametrize(("name", "make", "complaint"), CASES)
def test_one_sentence_and_nothing_changes(here, capsys, name, make, complaint, dst):
    make(here / name)
    save_folder("old", SMALL, weights())
    write_tensors("old.safetensors", weights())
    before = everything_in(here.parent)
    assert main([name, dst, "--to", "flux", "--preset", "sdxl", "--force"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and re.match(r"flax-vae-convert( \w+)?: ", err) and "Traceback" not in err
    assert name.removesuffix(".index.json") in err and complaint in err
    assert everything_in(here.parent) == before
    for other in (["inspect", name], ["verify", name, "old"]):
        assert main(other) == 1
    assert everything_in(here.parent) == before


def test_wrong_shapes_are_named(here, capsys):
    write_tensors("a.safetensors", weights() | {"encoder.conv_in.bias": np.zeros(31, np.float32)})
    (here / "config.json").write_text(json.dumps(SMALL.to_dict()))
    assert main(["a.safetensors", "new", "--to", "flux", "--config", "config.json"]) == 1
    assert "encoder.conv_in.bias has shape (31,); expected (32,)" in capsys.readouterr().err
    assert not (here / "new").exists()


@pytest.mark.parametrize(("dst", "layout"), [("old", "flux"), ("old.safetensors", "ldm"), ("new", "diffusers")])
def test_a_full_disk_is_one_sentence_and_nothing_changes(here, capsys, monkeypatch, dst, layout):
    save_folder("old", SMALL, weights())
    write_tensors("old.safetensors", weights())
    before = everything_in(here)

    def full(file, tensors):
        file.write(b"some")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("flax_vae.convert.formats.safetensors._write_data", full)
    assert main(["old", dst, "--to", layout, "--force"]) == 1
    err = capsys.readouterr().err
    assert "could not be written: No space left on device" in err and err.count("\n") == 1
    assert everything_in(here) == before
