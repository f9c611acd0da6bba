"""Names on the hub; the hub itself is played by a function that notes what it was asked for."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert import PRESETS, expand
from convert.hub import FILES, locate
from convert.loading import load_weights
from convert.recognition import Weights
from convert.saving import save_weights

SMALL = replace(PRESETS["sdxl"], ch=32, ch_mult=(1, 1), num_res_blocks=1)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty working directory, and a hub that holds a model of diffusers, also in the folder `vae`."""
    weights = Weights({row.theirs: np.ones(row.torch_shape, np.float32) for row in expand(SMALL)}, "flux", SMALL)
    for folder in ("snapshot", "snapshot/vae"):
        save_weights(tmp_path / "hub" / folder, weights, "diffusers")
    asked = []

    def snapshot_download(repo_id, *, allow_patterns):
        asked.append((repo_id, allow_patterns))
        if repo_id == "org/absent":
            raise OSError("404: no such repository\nand a page of advice")
        return str(tmp_path / "hub" / "snapshot")

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return asked


@pytest.mark.parametrize(
    ("name", "patterns"), [("org/name", list(FILES)), ("org/name.v1-5/vae", [f"vae/{file}" for file in FILES])]
)
def test_only_what_can_be_read_is_downloaded(hub, name, patterns):
    assert load_weights(name).params == SMALL
    assert hub == [("/".join(name.split("/")[:2]), patterns)]
    assert not any(file.endswith((".bin", ".ckpt", ".py", ".msgpack", "*", ".fp16.safetensors")) for file in patterns)


def test_what_exists_is_never_asked_for(hub):
    Path("org").mkdir()
    Path("org/name").mkdir()
    assert locate("org/name") == Path("org/name")
    assert hub == []


@pytest.mark.parametrize("path", ["name", "a/b/c/d", "/org/name", "../name", "./org/name", "org//name", "org/na me"])
def test_what_is_no_name_is_never_asked_for(hub, path):
    with pytest.raises(FileNotFoundError, match="does not exist; give a folder"):
        load_weights(path)
    assert hub == []


def test_what_the_hub_does_not_give_is_one_sentence(hub):
    with pytest.raises(FileNotFoundError) as error:
        load_weights("org/absent")
    assert str(error.value) == (
        "org/absent does not exist here, and the Hugging Face hub did not give it: 404: no such repository"
    )
    with pytest.raises(FileNotFoundError, match="org/name on the Hugging Face hub has no unet/"):
        load_weights("org/name/unet")


def test_without_the_library_the_extra_is_named(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"org/name does not exist; .*pip install 'flax-vae\[hub\]'"):
        load_weights("org/name")
