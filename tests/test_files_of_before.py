"""Files that an earlier version wrote open in this one; `tests/before/README.md` says how they were made."""

import hashlib
import json
import math
import os
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from flax_vae import from_pretrained
from flax_vae.cli.main import main as flax_vae_command
from flax_vae.convert import AutoEncoderParams, load_weights, to_flax
from flax_vae.convert.latents import LatentDataset
from flax_vae.convert.table import flatten
from flax_vae.train.cli.main import main as train_command
from flax_vae.train.report import read_metrics

ARCHIVE = Path(__file__).parent / "before" / "files.tar.xz"

with tarfile.open(ARCHIVE) as files:
    EXPECTED = json.load(files.extractfile("expected.json"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """Files that tests read."""
    return unpack(tmp_path_factory.mktemp("before"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files that one test may change; it is the working directory, as it was when they were made."""
    monkeypatch.chdir(tmp_path)
    return unpack(tmp_path)


def unpack(folder):
    with tarfile.open(ARCHIVE) as files:
        files.extractall(folder, filter="data")
    return folder


def sha256(arrays):
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        array = np.asarray(array)
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("path", EXPECTED["models"])
def test_a_model_file_holds_the_same_numbers(path, unpacked):
    weights = load_weights(unpacked / path)
    tree = to_flax(weights.tensors, weights.params, weights.layout)
    assert sha256(flatten(tree)) == EXPECTED["models"][path]["sha256"]
    assert weights.params == AutoEncoderParams.from_dict(EXPECTED["models"][path]["architecture"])


@pytest.mark.parametrize("path", ["run/export", "run/checkpoints/2", "models/diffusers", "models/normed"])
def test_a_model_is_loaded_into_flax(path, unpacked):
    model, params = from_pretrained(unpacked / path)
    assert sha256(flatten(jax.device_get(params))) == EXPECTED["models"][path]["sha256"]
    assert model.params == load_weights(unpacked / path).params


def test_a_checkpoint_holds_the_weights_beside_their_average(unpacked):
    raw = load_weights(unpacked / "run" / "checkpoints" / "2", raw_weights=True)
    averaged = EXPECTED["models"]["run/checkpoints/2"]["sha256"]
    assert sha256(flatten(to_flax(raw.tensors, raw.params, raw.layout))) != averaged


@pytest.mark.parametrize("path", EXPECTED["latents"])
def test_latents_are_the_same_numbers(path, unpacked):
    entries, expected = LatentDataset(unpacked / path), EXPECTED["latents"][path]
    found = [sha256({k: v for k, v in entry.items() if isinstance(v, np.ndarray)}) for entry in entries]
    assert found == expected["sha256"]
    assert [entry["name"] for entry in entries] == expected["names"]
    assert list(entries.statistics.channel_mean) == expected["channel_mean"]


def test_a_complete_encode_is_left_as_it_is(folder, capsys):
    def files():
        return {path: path.read_bytes() for path in Path("latents/mean").rglob("*") if path.is_file()}

    before = files()
    words = ["--model", "run/export", "--store", "mean", "--flip", "--shard-size", "3"]
    assert flax_vae_command(["encode", "photographs", "latents/mean", *words]) == 0, capsys.readouterr().err
    assert files() == before


@pytest.mark.slow
def test_a_run_is_resumed(folder, capfd):
    assert train_command(["--workdir", "run", "--steps", "3"]) == 0, capfd.readouterr().err
    assert "after step 2 of 3" in capfd.readouterr().out
    rows = read_metrics(folder / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(math.isfinite(row["psnr"]) and math.isfinite(row["d_loss"]) for row in rows)
    assert sorted(os.listdir(folder / "run" / "checkpoints"))[-1] == "3"
    _, before = from_pretrained(folder / "run" / "checkpoints" / "2")
    _, after = from_pretrained(folder / "run" / "export")
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before, after)
    assert 0 < max(jax.tree.leaves(moved)) < 1e-2  # one step, from the weights that were there
    stored = json.loads((folder / "run" / "config.json").read_text())
    assert stored["steps"] == 3 and [len(entry["changed"]) for entry in stored["history"]] == [2, 1]
    assert "<svg" in (folder / "run" / "report.html").read_text()
