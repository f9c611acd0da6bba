"""Names on the hub; the hub itself is played by a function that notes what it was asked for, or by a cache on disk."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flax_vae.convert import PRESETS, expand
from flax_vae.convert.cli.main import main
from flax_vae.convert.extras import install_command
from flax_vae.convert.table.identification import Weights
from flax_vae.convert.weights.hub import FILES, locate
from flax_vae.convert.weights.load import load_weights
from flax_vae.convert.weights.save import save_weights

SMALL = replace(PRESETS["sdxl"], ch=32, ch_mult=(1, 1), num_res_blocks=1)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty working directory, and a hub that holds a model of diffusers, also in the folder `vae`."""
    weights = Weights({row.theirs: np.ones(row.torch_shape, np.float32) for row in expand(SMALL)}, "flux", SMALL)
    for folder in ("snapshot", "snapshot/vae"):
        save_weights(tmp_path / "hub" / folder, weights, "diffusers")
    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        if repo_id in ("org/absent", "org/gated"):
            name = {"org/absent": "RepositoryNotFoundError", "org/gated": "GatedRepoError"}[repo_id]
            raise type(name, (OSError,), {})("401 Client Error.\nand a page of advice")
        if repo_id == "org/broken":
            raise OSError("\n\n503: no service\nand a page of advice")
        return str(tmp_path / "hub" / "snapshot")

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return asked


FOLDER = ["vae/" + file for file in FILES]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("org/name", ("org/name", None, list(FILES))),
        ("hf:org/name", ("org/name", None, list(FILES))),
        (Path("hf:org/name@main"), ("org/name", "main", list(FILES))),
        ("hf:org/name.v1-5/vae@refs/pr/1", ("org/name.v1-5", "refs/pr/1", FOLDER)),
        (
            "hf:org/name/vae/diffusion_pytorch_model.safetensors",
            ("org/name", None, ["vae/diffusion_pytorch_model.safetensors", "vae/config.json"]),
        ),
    ],
)
def test_only_what_can_be_read_is_downloaded(hub, name, asked):
    assert load_weights(name).params == SMALL
    assert hub == [asked]
    patterns = asked[2]
    assert not any(file.endswith((".bin", ".ckpt", ".py", ".msgpack", "*", ".fp16.safetensors")) for file in patterns)


def test_a_variant_and_shards_are_downloaded_by_their_names(hub):
    with pytest.raises(FileNotFoundError, match="has no root with weights of the variant 'fp16' and of a known name"):
        locate("hf:org/name", "fp16")
    with pytest.raises(FileNotFoundError, match="has no folder vae with weights of the variant 'fp16'"):
        locate("hf:org/name/vae", "fp16")
    assert "diffusion_pytorch_model.fp16.safetensors" in hub[0][2] and "model.safetensors" not in hub[0][2]
    assert "vae/diffusion_pytorch_model.fp16-*-of-*.safetensors" in hub[1][2]
    index = "vae/diffusion_pytorch_model.safetensors.index.json"
    with pytest.raises(FileNotFoundError, match=f"org/name on the Hugging Face hub has no file {index}"):
        locate(f"hf:org/name/{index}")
    assert hub[2][2] == [index, "vae/config.json", "vae/diffusion_pytorch_model-*"]


def test_what_exists_is_never_asked_for(hub):
    Path("org").mkdir()
    Path("org/name").mkdir()
    assert locate("org/name") == Path("org/name")
    assert hub == []


@pytest.mark.parametrize("path", ["name", "a/b/c", "/org/name", "../name", "./org/name", "org//name", "org/na me"])
def test_what_is_no_name_is_never_asked_for(hub, path):
    with pytest.raises(FileNotFoundError, match="does not exist; give a folder"):
        load_weights(path)
    assert hub == []


@pytest.mark.parametrize("path", ["runs/tiny", "org/ae.safetensors", "org/vae.ckpt", Path("org/name")])
def test_a_mistyped_path_is_never_asked_for(hub, path):
    Path("runs").mkdir()
    with pytest.raises(FileNotFoundError, match=f"^{path} does not exist; for a model on .*, write hf:{path}$"):
        load_weights(path)
    assert hub == []


def test_commands_ask_for_what_is_called_hf(hub, capsys):
    assert main(["inspect", "org/name"]) == 1
    assert "org/name does not exist; for a model on the Hugging Face hub, write hf:" in capsys.readouterr().err
    assert hub == []
    assert main(["inspect", "hf:org/name@main"]) == 0
    assert main(["hf:org/name", "new", "--to", "flux"]) == 0
    assert [asked[:2] for asked in hub] == [("org/name", "main"), ("org/name", None)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("org/absent", "the repository does not exist or is private: log in with hf auth login"),
        ("org/gated", "it is gated: accept its terms on its page, then log in with hf auth login"),
        ("org/broken", "503: no service"),
    ],
)
def test_what_the_hub_does_not_give_is_one_sentence(hub, name, reason):
    with pytest.raises(FileNotFoundError) as error:
        load_weights(f"hf:{name}")
    assert str(error.value) == f"hf:{name}: download from the Hugging Face hub failed: {reason}"


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:../x", "hf:org/name/../x", "hf:/org/name", "hf:org/name@"])
def test_what_begins_with_hf_and_is_no_name_is_refused(hub, name):
    with pytest.raises(FileNotFoundError, match="is not a name on the Hugging Face hub; expected hf:org/name"):
        load_weights(name)
    assert hub == []


def test_a_repository_without_weights_that_are_known_is_said(hub):
    with pytest.raises(FileNotFoundError, match="has no folder unet with weights .* hf:org/name/FILE.safetensors"):
        load_weights("hf:org/name/unet")
    with pytest.raises(FileNotFoundError, match="has no file ae.safetensors"):
        load_weights("hf:org/name/ae.safetensors")


def test_without_the_library_the_extra_is_named(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("org/name", "hf:org/name"):
        hint = re.escape(install_command("hub"))
        with pytest.raises(FileNotFoundError, match=f"hf:org/name is on .* needs .*: {hint}$"):
            load_weights(name)


def test_the_cache_of_the_hub_serves_without_a_network(tmp_path):
    pytest.importorskip("huggingface_hub")
    weights = Weights({row.theirs: np.ones(row.torch_shape, np.float32) for row in expand(SMALL)}, "flux", SMALL)
    save_weights(tmp_path / "vae", weights, "diffusers")
    save_weights(tmp_path / "ae.safetensors", weights, "flux")
    (tmp_path / "one.json").write_text(json.dumps(SMALL.to_dict()))
    root = tmp_path / "cache" / "hub" / "models--org--sd"
    for folder in ("blobs", "refs", f"snapshots/{'a' * 40}/vae"):
        (root / folder).mkdir(parents=True)
    (root / "refs" / "main").write_text("a" * 40)
    for number, file in enumerate([*sorted((tmp_path / "vae").iterdir()), tmp_path / "ae.safetensors"]):
        shutil.copy(file, root / "blobs" / str(number))
        (root / "snapshots" / ("a" * 40) / file.relative_to(tmp_path)).symlink_to(root / "blobs" / str(number))
    code = (
        "import sys; from flax_vae.convert.cli.main import main\n"
        "names = ['hf:org/sd/vae', 'hf:org/sd/vae@main', 'hf:org/sd/ae.safetensors', 'hf:org/sd', 'hf:org/other']\n"
        "print([main(['inspect', name]) for name in names], file=sys.stderr)"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    *errors, codes = ended.stderr.splitlines()
    assert codes == "[0, 0, 0, 1, 1]"
    assert len(errors) == 2
    assert "hf:org/sd: org/sd on the Hugging Face hub has no root with weights of a known name" in errors[0]
    assert "hf:org/other: download from the Hugging Face hub failed: it is not in the local cache, and" in errors[1]


def test_the_models_of_commands_and_of_runs_are_paths(hub):
    from flax_vae.inference.model import load_model
    from flax_vae.train.build import load_start
    from flax_vae.train.config.schema import TrainConfig
    from flax_vae.train.errors import RunError

    with pytest.raises(FileNotFoundError, match="write hf:org/name$"):
        load_model("org/name", None, "float32")
    with pytest.raises(RunError, match="start_from='org/name' cannot be loaded: .* write hf:org/name$"):
        load_start(TrainConfig(model=SMALL, start_from="org/name"))
    assert hub == []
    assert load_start(TrainConfig(model=SMALL, start_from="hf:org/name")) is not None
    assert len(hub) == 1


def test_python_names_the_hub_in_both_frameworks(hub):
    import flax_vae

    assert flax_vae.from_pretrained("org/name")[0].params == SMALL
    assert flax_vae.from_pretrained(Path("hf:org/name"))[0].params == SMALL
    with pytest.raises(FileNotFoundError, match="write hf:org/name$"):
        flax_vae.from_pretrained(Path("org/name"))
    assert len(hub) == 2


@pytest.mark.torch
def test_pytorch_names_the_hub_in_the_same_way(hub):
    import torch_ref.loading

    assert torch_ref.loading.from_pretrained("org/name").params == SMALL
    assert len(hub) == 1
