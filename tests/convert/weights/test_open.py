import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from flax import serialization

from flax_vae.convert import PRESETS, ConversionError
from flax_vae.convert.errors import FileError
from flax_vae.convert.formats.safetensors import read_tensors, write_tensors
from flax_vae.convert.weights.diffusers_config import write_diffusers_config
from flax_vae.convert.weights.folder import save_folder
from flax_vae.convert.weights.open import open_weights
from tests.convert import samples
from tests.convert.samples import assert_same

TINY = replace(PRESETS["sdxl"], ch=32, ch_mult=(1, 2), num_res_blocks=1)
DIFFUSERS = "diffusion_pytorch_model"


random_weights = partial(samples.random_weights, params=TINY)
WEIGHTS = {"encoder.a": np.arange(3.0), "decoder.b": np.ones((2, 2), np.float16)}


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
    source = open_weights(str(path))
    assert (source.path, source.kind, source.config) == (path, "safetensors", None)
    assert source.metadata["format"] == "pt"
    assert_same(source.tensors, WEIGHTS)


def test_an_index(tmp_path):
    source = open_weights(write_shards(tmp_path, "model"))
    assert (source.kind, source.config) == ("sharded safetensors", None)
    assert_same(source.tensors, WEIGHTS)


@pytest.mark.torch
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".CKPT"])
def test_a_pickle(tmp_path, suffix):
    import torch

    torch.save({name: torch.from_numpy(array) for name, array in WEIGHTS.items()}, tmp_path / f"a{suffix}")
    source = open_weights(tmp_path / f"a{suffix}")
    assert (source.kind, source.config) == ("pickle", None)
    assert_same(source.tensors, WEIGHTS)


def test_a_msgpack_file(tmp_path):
    (tmp_path / "a.msgpack").write_bytes(serialization.msgpack_serialize({"encoder": {"a": np.ones(2)}}))
    source = open_weights(tmp_path / "a.msgpack")
    assert (source.kind, source.config) == ("flax msgpack", None)
    assert_same(source.tensors, {"encoder/a": np.ones(2)})


@pytest.mark.parametrize("given", ["folder", "file"])
def test_a_model_folder(tmp_path, given):
    save_folder(tmp_path / "model", TINY, random_weights())
    source = open_weights(tmp_path / "model" / ("model.safetensors" if given == "file" else ""))
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
    source = open_weights(path if given == "file" else diffusers_folder)
    assert (source.path, source.kind, source.config) == (path, "diffusers folder", TINY)
    assert_same(source.tensors, expected)


def test_of_several_variants_and_forms_the_default_is_taken(diffusers_folder):
    names = [f"{DIFFUSERS}.fp16.safetensors", f"{DIFFUSERS}.safetensors"]
    for number, name in enumerate(names):
        write_tensors(diffusers_folder / name, {"a": np.array(number)})
    for name in (f"{DIFFUSERS}.bin", f"{DIFFUSERS}.fp16.bin", "diffusion_flax_model.msgpack"):
        (diffusers_folder / name).touch()
    assert open_weights(diffusers_folder).path.name == names[1]
    assert open_weights(diffusers_folder, variant="fp16").tensors["a"] == 0
    assert open_weights(diffusers_folder / names[0]).config == TINY
    with pytest.raises(FileError, match="vae holds no variant 'bf16'; found fp16$"):
        open_weights(diffusers_folder, variant="bf16")
    with pytest.raises(FileError, match="variant='fp16' chooses in a folder, and .* is a file; leave it out"):
        open_weights(diffusers_folder / names[0], variant="fp16")
    (diffusers_folder / names[1]).unlink()
    (diffusers_folder / f"{DIFFUSERS}.bin").unlink()
    (diffusers_folder / f"{DIFFUSERS}.fp16.bin").unlink()
    assert open_weights(diffusers_folder, variant="fp16").path.name == names[0]
    (diffusers_folder / "diffusion_flax_model.msgpack").unlink()
    assert open_weights(diffusers_folder).path.name == names[0]  # there is no other
    write_shards(diffusers_folder, f"{DIFFUSERS}.bf16")
    with pytest.raises(FileError, match=r"several variants \(bf16, fp16\); choose one with variant=, or --variant of"):
        open_weights(diffusers_folder)
    assert_same(open_weights(diffusers_folder, variant="bf16").tensors, WEIGHTS)


def test_a_model_folder_of_ours_has_no_variants(tmp_path):
    save_folder(tmp_path / "model", TINY, random_weights())
    with pytest.raises(FileError, match="holds no variant 'fp16'; found none that has a name"):
        open_weights(tmp_path / "model", variant="fp16")


def test_shards_without_their_index_are_not_taken_for_the_model(diffusers_folder):
    write_shards(diffusers_folder, DIFFUSERS).unlink()
    with pytest.raises(FileError, match="holds shards .*-00001-of-00002.safetensors, .* without their index"):
        open_weights(diffusers_folder)


@pytest.mark.torch
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_what_diffusers_saves_in_shards_is_read(tmp_path, safe, variant):
    import torch

    AutoencoderKL = pytest.importorskip("diffusers").AutoencoderKL
    model = AutoencoderKL.from_config(write_diffusers_config(TINY)).to(torch.float16)
    model.save_pretrained(tmp_path, safe_serialization=safe, variant=variant, max_shard_size="300KB")
    assert len(os.listdir(tmp_path)) > 3
    for given in (tmp_path, next(tmp_path.glob("*.index*.json"))):
        source = open_weights(given)
        assert source.config == TINY
        assert_same(source.tensors, {name: tensor.numpy() for name, tensor in model.state_dict().items()})


@pytest.mark.torch
def test_content_counts_and_not_the_name(tmp_path):
    import torch

    write_tensors(tmp_path / "a.safetensors", WEIGHTS)
    for name in ("a.sft", "a.SAFETENSORS", "a.ckpt", "a"):
        shutil.copy(tmp_path / "a.safetensors", tmp_path / name)
        source = open_weights(tmp_path / name)
        assert source.kind == "safetensors"
        assert_same(source.tensors, WEIGHTS)
    torch.save({name: torch.from_numpy(array) for name, array in WEIGHTS.items()}, tmp_path / "b.safetensors")
    assert open_weights(tmp_path / "b.safetensors").kind == "pickle"
    assert_same(open_weights(tmp_path / "b.safetensors").tensors, WEIGHTS)


FOREIGN = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 334643268\n",
        "is a pointer of Git LFS to a file of 334,643,268 bytes, not .*; run git lfs pull",
    ),
    "page": (b"\n<!DOCTYPE html><html><head>", "is a web page .HTML., not .*; download the file itself"),
}


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.msgpack", "a.sft", "a.safetensors.index.json", "config"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_pointers_and_pages_are_told_apart_from_damaged_files(tmp_path, diffusers_folder, kind, name):
    content, complaint = FOREIGN[kind]
    given = tmp_path / name
    if name == "config":
        given = diffusers_folder / f"{DIFFUSERS}.safetensors"
        write_tensors(given, WEIGHTS)
        (diffusers_folder / "config.json").write_bytes(content)
    else:
        given.write_bytes(content)
    with pytest.raises(FileError, match=complaint):
        open_weights(given)


def test_inside_a_model_folder_they_are_told_apart_too(tmp_path):
    save_folder(tmp_path / "model", TINY, random_weights())
    (tmp_path / "model" / "model.safetensors").write_bytes(FOREIGN["lfs"][0])
    with pytest.raises(FileError, match=FOREIGN["lfs"][1]):
        open_weights(tmp_path / "model")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(FileError, match="a.safetensors is a pipe, a socket or a device"):
        open_weights(tmp_path / "a.safetensors")


def test_both_forms_in_one_folder_are_two_models(tmp_path):
    save_folder(tmp_path / "model", TINY, random_weights())
    write_tensors(tmp_path / "model" / f"{DIFFUSERS}.safetensors", WEIGHTS)
    with pytest.raises(
        FileError, match=f"several models; give one of them: model.safetensors, {DIFFUSERS}.safetensors"
    ):
        open_weights(tmp_path / "model")


def test_a_checkpoint(tmp_path):
    import jax.numpy as jnp

    from flax_vae.train.config.schema import TrainConfig
    from flax_vae.train.run.checkpoints import Checkpoints

    with Checkpoints(tmp_path / "checkpoints") as manager:
        manager.save(5, {"params": {"encoder": {"a": jnp.ones(3)}}}, TrainConfig(TINY), wait=True)
    for path in (tmp_path / "checkpoints", tmp_path / "checkpoints" / "5"):
        source = open_weights(path)
        assert (source.path, source.kind, source.config) == (tmp_path / "checkpoints" / "5", "orbax", TINY)
        assert_same(source.tensors, {"encoder/a": np.ones(3, np.float32)})
    shutil.copytree(tmp_path / "checkpoints" / "5", tmp_path / "checkpoints" / "10")
    with pytest.raises(FileError, match=r"holds several checkpoints \(5, 10\); give one of them, the newest is .*/10$"):
        open_weights(tmp_path / "checkpoints")


def test_a_run_is_its_export_once_it_has_ended(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "400").mkdir(parents=True)
    (run / "checkpoints" / "400" / "_CHECKPOINT_METADATA").write_text("{}")
    (run / "metrics.jsonl").touch()
    (run / "config.json").write_text(json.dumps({"steps": 400}))
    with pytest.raises(FileError, match="run has no export/ yet; let the run end, or name a checkpoint: .*/400$"):
        open_weights(run)
    save_folder(run / "export", TINY, random_weights())
    source = open_weights(run)
    assert (source.path, source.kind, source.config) == (run / "export" / "model.safetensors", "model folder", TINY)
    assert_same(source.tensors, random_weights())
    (run / "config.json").write_text(json.dumps({"steps": 800}))
    with pytest.raises(
        FileError, match="has done 400 of 800 steps, and .*export was written before .*/export or .*/400$"
    ):
        open_weights(run)
    shutil.rmtree(run / "checkpoints")
    assert open_weights(run).config == TINY


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ([], "holds no model that is known by its name; give a folder with config.json beside model.safetensors or"),
        (["config.json", "notes.txt"], "holds no model that is known by its name; give a folder"),
        (["ae.safetensors", "b.ckpt"], "; give one of its files: ae.safetensors, b.ckpt"),
        (["config.json", "ae.safetensors"], "; give one of its files: ae.safetensors"),
        (["model.safetensors"], "; give one of its files: model.safetensors"),
        (["model_index.json", "vae/config.json"], "; its autoencoder is in .*vae"),
        (["config.json", "metrics.jsonl", "export/config.json"], "has no export/ yet; let the run end"),
    ],
)
def test_a_folder_is_never_guessed_at(tmp_path, files, complaint):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileError, match=complaint):
        open_weights(tmp_path)


def test_what_is_missing_or_of_no_known_kind_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist; give a folder, or a file of .*safetensors"):
        open_weights(tmp_path / "absent")
    (tmp_path / "a.gguf").touch()
    with pytest.raises(FileError, match="a.gguf is of an unknown kind; expected a folder, or a file of"):
        open_weights(tmp_path / "a.gguf")


def test_a_damaged_configuration_is_not_passed_over(diffusers_folder, tmp_path):
    write_tensors(diffusers_folder / f"{DIFFUSERS}.safetensors", WEIGHTS)
    fields = write_diffusers_config(TINY)
    (diffusers_folder / "config.json").write_text(json.dumps(fields | {"act_fn": "relu"}))
    with pytest.raises(ConversionError, match="config.json: act_fn='relu' is not supported"):
        open_weights(diffusers_folder)
    (diffusers_folder / "config.json").write_text("{")
    with pytest.raises(FileError, match="config.json is not a configuration of diffusers"):
        open_weights(diffusers_folder)
    save_folder(tmp_path / "model", TINY, random_weights())
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(FileError, match="config.json does not describe an autoencoder"):
        open_weights(tmp_path / "model")


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
        open_weights(given)
    assert open_weights(given, verify=False).tensors.keys()


def test_no_framework_is_loaded(tmp_path):
    save_folder(tmp_path / "model", TINY, random_weights())
    code = (
        "import sys; from flax_vae.convert.weights.open import open_weights; open_weights(sys.argv[1])\n"
        "assert not {'jax', 'flax', 'orbax', 'torch', 'tensorstore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "model"], check=True)


def test_reading_changes_nothing(tmp_path, diffusers_folder):
    write_tensors(diffusers_folder / f"{DIFFUSERS}.safetensors", WEIGHTS)
    before = sorted(os.listdir(diffusers_folder))
    open_weights(diffusers_folder)
    assert sorted(os.listdir(diffusers_folder)) == before
    assert_same(read_tensors(diffusers_folder / f"{DIFFUSERS}.safetensors"), WEIGHTS)
