"""What is installed is `flax_vae` and `torch_ref`: files that a user calls `convert` or `train` are in nobody's way."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flax_vae

SCRIPT = """
import convert, train
assert (convert.MINE, train.MINE) == ("a file", "a folder")

from dataclasses import replace
from pathlib import Path

from flax_vae import PRESETS, from_pretrained, init_params, save_pretrained, AutoEncoder
from flax_vae.convert import load_folder
from flax_vae.train.config import TrainConfig, DataConfig
from flax_vae.train.loop import train as run
import flax_vae.convert.table, flax_vae.train.losses, jax, jax.numpy as jnp

small = replace(PRESETS["tiny"], resolution=16, ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4)
fresh = AutoEncoder(small)
save_pretrained(Path("model"), fresh, init_params(fresh, jax.random.key(0)))
model, params = from_pretrained("model")
print(model.apply({"params": params}, jnp.zeros((1, 16, 16, 3)), sample=False, method="encode").shape)
run(TrainConfig(model=small, data=DataConfig(crop_size=16), batch_size=2, steps=1), Path("run"))
assert load_folder(Path("run/export"))[0] == small
"""
ROOT = Path(__file__).parents[1]


@pytest.fixture
def beside(tmp_path):
    """A research folder with files of the names that were ours."""
    (tmp_path / "convert.py").write_text("MINE = 'a file'\n")
    (tmp_path / "train.py").write_text("MINE = 'a file, which the folder hides'\n")
    (tmp_path / "train").mkdir()
    (tmp_path / "train/__init__.py").write_text("MINE = 'a folder'\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


@pytest.mark.parametrize("way", ["as it is installed", "from a clone on the path"])
def test_a_script_beside_files_of_these_names(beside, way):
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # one step on a few pixels
    if way == "from a clone on the path":
        if not (ROOT / "flax_vae").is_dir():
            pytest.skip("these tests run without a clone, on what is installed; the first way is asked")
        environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=beside, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "(1, 8, 8, 4)"


OLD = """
import convert, train, sys
import flax_vae.convert, flax_vae.train
assert convert is flax_vae.convert and train is flax_vae.train
import convert.formats.safetensors as old
import flax_vae.convert.formats.safetensors as new
assert old is new and new.__spec__.name == new.__name__ == "flax_vae.convert.formats.safetensors"
from train.config import TrainConfig
assert TrainConfig.__module__ == "flax_vae.train.config.schema"
assert not {"jax", "torch"} & set(sys.modules)
try:
    import convert.nothing
except ModuleNotFoundError as error:
    print(error)
"""


def test_nothing_uses_the_old_names():
    # What is installed has no `convert` and no `train`.  Statements, and programs that tests start, which are strings.
    old = re.compile(
        r"""^\s*(from|import) (convert|train)\b|"-m", "(convert|train)"|setattr\(f?"(convert|train)\.""",
        re.MULTILINE,
    )
    source = Path(flax_vae.__file__).parent
    files = [*source.rglob("*.py"), *(source.parent / "torch_ref").rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
    assert len(files) > 200
    assert [str(file) for file in files if file != Path(__file__) and old.search(file.read_text("utf-8"))] == []


@pytest.mark.skipif(importlib.util.find_spec("convert") is None, reason="what is installed has no old names")
def test_the_old_names_are_those_of_a_clone(tmp_path):
    done = subprocess.run([sys.executable, "-c", OLD], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("No module named 'convert.nothing'\n", "")
    for package in ("convert", "train.cli.main"):
        command = [sys.executable, "-m", package, "--help"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and done.stdout.startswith("usage: flax-vae-"), done.stderr
