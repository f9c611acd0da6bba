import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import serialization

from convert import PRESETS, ConversionError, expand
from convert.diffusers import write_diffusers_config
from convert.errors import FileError
from convert.files import read_tensors, write_tensors
from convert.folder import save_folder
from convert.sources import open_source

TINY = replace(PRESETS["sdxl"], ch=32, ch_mult=(1, 2), num_res_blocks=1)
DIFFUSERS = "diffusion_pytorch_model"


def random_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {row.theirs: rng.standard_normal(row.torch_shape, np.float32) for row in expand(TINY, "flux")}


WEIGHTS = {"encoder.a": np.arange(3.0), "decoder.b": np.ones((2, 2), np.float16)}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        array_ = np.asarray(found[name])
        assert array_.dtype == array.dtype and array_.shape == array.shape and array_.tobytes() == array.tobytes(), name


def write_shards(folder: Path, stem: str) -> Path:
    places = {}
    for number, (name, array) in enumerate(WEIGHTS.items(), 1):
        places[name] = f"{stem}-0000{number}-of-00002.safetensors"
        write_tensors(folder / places[name], {name: array})
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return index


@pytest.fixture
def diffusers_folder(tmp_path) -> Path:
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(write_diffusers_config(TINY)))
    return folder


def test_a_safetensors_file(tmp_path):
    path = tmp_path / "ae.safetensors"
    write_tensors(path, WEIGHTS, metadata={"format": "pt"})
    (tmp_path / "config.json").write_text("{}")  # of whatever else lies there
    source = open_source(str(path))
    assert (source.path, source.kind, source.config) == (path, "safetensors", None)
    assert source.metadata["format"] == "pt"
    assert_same(source.tensors, WEIGHTS)


def test_an_index(tmp_path):
    source = open_source(write_shards(tmp_path, "model"))
    assert (source.kind, source.config) == ("sharded safetensors", None)
    assert_same(source.tensors, WEIGHTS)


@pytest.mark.torch
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".CKPT"])
def test_a_pickle(tmp_path, suffix):
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in WEIGHTS.items()}, tmp_path / f"a{suffix}")
    source = open_source(tmp_path / f"a{suffix}")
    assert (source.kind, source.config) == ("pickle", None)
    assert_same(source.tensors, WEIGHTS)


def test_a_msgpack_file(tmp_path):
    (tmp_path / "a.msgpack").write_bytes(serialization.msgpack_serialize({"encoder": {"a": np.ones(2)}}))
    source = open_source(tmp_path / "a.msgpack")
    assert (source.kind, source.config) == ("flax msgpack", None)
    assert_same(source.tensors, {"encoder/a": np.ones(2)})


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_model_folder(tmp_path, given):
    save_folder(tmp_path / "model", TINY, random_weights())
    source = open_source(tmp_path / "model" / ("model.safetensors" if given == "file" else ""))
    assert (source.path, source.kind) == (tmp_path / "model" / "model.safetensors", "model folder")
    assert source.config == TINY
    assert_same(source.tensors, random_weights())


@pytest.mark.parametrize("given", ["folder", "file"])
@pytest.mark.parametrize("form", ["single", "half", "sharded", "msgpack", pytest.param("bin", marks=pytest.mark.torch)])
def test_a_diffusers_folder(diffusers_folder, form, given):
    expected = WEIGHTS
    if form == "sharded":
        path = write_shards(diffusers_folder, DIFFUSERS)
    elif form == "msgpack":
        path = diffusers_folder / "diffusion_flax_model.msgpack"
        path.write_bytes(serialization.msgpack_serialize(WEIGHTS))
    elif form == "bin":
        import torch

        path = diffusers_folder / f"{DIFFUSERS}.bin"
        torch.save({name: torch.from_numpy(array) for name, array in WEIGHTS.items()}, path)
    else:
        path = diffusers_folder / f"{DIFFUSERS}{'.fp16' if form == 'half' else ''}.safetensors"
        write_tensors(path, WEIGHTS)
    source = open_source(path if given == "file" else diffusers_folder)
    assert (source.path, source.kind, source.config) == (path, "diffusers folder", TINY)
    assert_same(source.tensors, expected)


def test_several_models_in_a_folder_are_listed_and_can_be_given(diffusers_folder):
    names = [f"{DIFFUSERS}.fp16.safetensors", f"{DIFFUSERS}.safetensors"]
    for number, name in enumerate(names):
        write_tensors(diffusers_folder / name, {"a": np.array(number)})
    (diffusers_folder / f"{DIFFUSERS}.bin").touch()
    write_shards(diffusers_folder, f"{DIFFUSERS}.bf16")
    with pytest.raises(FileError) as caught:
        open_source(diffusers_folder)
    assert str(caught.value) == (
        f"{diffusers_folder} holds several models; give one of them: {DIFFUSERS}.bf16.safetensors.index.json, "
        f"{DIFFUSERS}.bin, {names[0]}, {names[1]}"
    )
    assert open_source(diffusers_folder / names[1]).tensors["a"] == 1
    assert open_source(diffusers_folder / names[0]).config == TINY


def test_shards_without_their_index_are_not_taken_for_the_model(diffusers_folder):
    write_shards(diffusers_folder, DIFFUSERS).unlink()
    with pytest.raises(FileError, match="holds several models; give one of them: .*-00001-of-00002.safetensors, "):
        open_source(diffusers_folder)


def test_both_forms_in_one_folder_are_two_models(tmp_path):
    save_folder(tmp_path / "model", TINY, random_weights())
    write_tensors(tmp_path / "model" / f"{DIFFUSERS}.safetensors", WEIGHTS)
    with pytest.raises(
        FileError, match=f"several models; give one of them: model.safetensors, {DIFFUSERS}.safetensors"
    ):
        open_source(tmp_path / "model")


def test_a_checkpoint(tmp_path):
    import jax.numpy as jnp

    from train.checkpoints import Checkpoints
    from train.config import TrainConfig

    with Checkpoints(tmp_path / "checkpoints") as manager:
        manager.save(5, {"params": {"encoder": {"a": jnp.ones(3)}}}, TrainConfig(TINY), wait=True)
    for path in (tmp_path / "checkpoints", tmp_path / "checkpoints" / "5"):
        source = open_source(path)
        assert (source.path, source.kind, source.config) == (tmp_path / "checkpoints" / "5", "orbax", TINY)
        assert_same(source.tensors, {"encoder/a": np.ones(3, np.float32)})
    shutil.copytree(tmp_path / "checkpoints" / "5", tmp_path / "checkpoints" / "10")
    with pytest.raises(FileError, match="holds several models; give one of them: 5, 10"):
        open_source(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ([], "holds no model that is known by its name; give a folder with config.json beside model.safetensors or"),
        (["config.json", "notes.txt"], "holds no model that is known by its name; give a folder"),
        (["ae.safetensors", "b.ckpt"], "; give one of its files: ae.safetensors, b.ckpt"),
        (["config.json", "ae.safetensors"], "; give one of its files: ae.safetensors"),
        (["model.safetensors"], "; give one of its files: model.safetensors"),
        (["model_index.json", "vae/config.json"], "; its autoencoder is in .*vae"),
        (["config.json", "metrics.jsonl", "export/config.json"], "; its autoencoder is in .*export"),
    ],
)
def test_a_folder_is_never_guessed_at(tmp_path, files, complaint):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileError, match=complaint):
        open_source(tmp_path)


def test_what_is_missing_or_of_no_known_kind_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist; give a folder, or a file of .*safetensors"):
        open_source(tmp_path / "absent")
    (tmp_path / "a.gguf").touch()
    with pytest.raises(FileError, match="a.gguf has a name of no known kind; give a folder, or a file of"):
        open_source(tmp_path / "a.gguf")


def test_a_damaged_configuration_is_not_passed_over(diffusers_folder, tmp_path):
    write_tensors(diffusers_folder / f"{DIFFUSERS}.safetensors", WEIGHTS)
    fields = write_diffusers_config(TINY)
    (diffusers_folder / "config.json").write_text(json.dumps(fields | {"act_fn": "relu"}))
    with pytest.raises(ConversionError, match="config.json: act_fn='relu' is another architecture"):
        open_source(diffusers_folder)
    (diffusers_folder / "config.json").write_text("{")
    with pytest.raises(FileError, match="config.json is not a configuration of diffusers"):
        open_source(diffusers_folder)
    save_folder(tmp_path / "model", TINY, random_weights())
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(FileError, match="config.json does not describe an autoencoder"):
        open_source(tmp_path / "model")


@pytest.mark.parametrize("form", ["file", "index", "model", "diffusers"])
def test_verifying_can_be_left_out(tmp_path, diffusers_folder, form):
    if form == "file":
        given = damaged = tmp_path / "a.safetensors"
        write_tensors(given, WEIGHTS)
    elif form == "index":
        given = write_shards(tmp_path, "model")
        damaged = tmp_path / "model-00002-of-00002.safetensors"
    elif form == "model":
        given, damaged = tmp_path / "model", tmp_path / "model" / "model.safetensors"
        save_folder(given, TINY, random_weights())
    else:
        given, damaged = diffusers_folder, diffusers_folder / f"{DIFFUSERS}.safetensors"
        write_tensors(damaged, WEIGHTS)
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FileError, match=f"{damaged.name}: the data have SHA-256"):
        open_source(given)
    assert open_source(given, verify=False).tensors.keys()


def test_no_framework_is_loaded(tmp_path):
    save_folder(tmp_path / "model", TINY, random_weights())
    code = (
        "import sys; from convert.sources import open_source; open_source(sys.argv[1])\n"
        "assert not {'jax', 'flax', 'orbax', 'torch', 'tensorstore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "model"], check=True)


def test_reading_changes_nothing(tmp_path, diffusers_folder):
    write_tensors(diffusers_folder / f"{DIFFUSERS}.safetensors", WEIGHTS)
    before = sorted(os.listdir(diffusers_folder))
    open_source(diffusers_folder)
    assert sorted(os.listdir(diffusers_folder)) == before
    assert_same(read_tensors(diffusers_folder / f"{DIFFUSERS}.safetensors"), WEIGHTS)
