"""Names on the hub, and models on it: the library's own client loads them from a small hub on this machine."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from flax import serialization

from flax_vae.convert import PRESETS, TinyAutoEncoderParams, expand
from flax_vae.convert.errors import ArgumentError
from flax_vae.convert.extras import install_command
from flax_vae.convert.formats import write_tensors
from flax_vae.convert.table import unflatten
from flax_vae.convert.table.identification import Weights
from flax_vae.convert.weights import hub as hub_module
from flax_vae.convert.weights import load_weights, save_folder, save_weights
from flax_vae.convert.weights import open as opening
from flax_vae.convert.weights.diffusers_config import write_diffusers_config
from flax_vae.convert.weights.hub import HubName, find, find_config
from tests.convert.weights._hub import Client, Hub

SMALL = replace(PRESETS["sdxl"], ch=32, ch_mult=(1,), num_res_blocks=1)
DIFFUSERS = "diffusion_pytorch_model"
FULL = "full_encoder_small_decoder.safetensors"
KEEPS_LISTS = hasattr(huggingface_hub, "get_cached_repo_tree")  # of a revision's files in the cache: since release 2
MARKED = "decoder.conv_out.bias"  # of every copy, so that a test sees which was read


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("org/name", HubName("org/name")),
        ("hf:org/name", HubName("org/name")),
        (Path("hf:org/name@main"), HubName("org/name", revision="main")),
        ("hf:org/name.v1-5/vae@refs/pr/1", HubName("org/name.v1-5", "vae", "refs/pr/1")),
        ("hf:org/name/vae/ae.safetensors", HubName("org/name", "vae/ae.safetensors")),
    ],
)
def test_names_on_the_hub(name, found):
    assert find(name) == found
    assert find(str(found)) == found


def test_revision_and_folder_are_given_once():
    assert find("org/name", "flax", "vae") == HubName("org/name", "vae", "flax")
    assert find("hf:org/name", "refs/pr/1", "a/b") == find("hf:org/name/a/b@refs/pr/1")
    assert find("hf:org/name@flax", None, "") == HubName("org/name", revision="flax")
    assert find("hf:org/name", "") == find("org/name", "") == HubName("org/name")
    with pytest.raises(ArgumentError, match="hf:org/name@a names 'a', and revision='b'; give one of them"):
        find("hf:org/name@a", "b")
    with pytest.raises(ArgumentError, match="hf:org/name/a names 'a', and subfolder='b'; give one of them"):
        find("hf:org/name/a", None, "b")
    with pytest.raises(ArgumentError, match=r"subfolder='\.\./b' is not valid; expected names separated by /"):
        find("org/name", None, "../b")


def test_what_exists_is_local():
    Path("org/name/vae").mkdir(parents=True)
    assert find("org/name") == Path("org/name")
    assert find("org/name", subfolder="vae") == Path("org/name/vae")
    with pytest.raises(ArgumentError, match="revision='flax' is of a model on the .*, and org/name is a local path"):
        find("org/name", "flax")
    save_folder("org/name/vae", SMALL, marked(0))
    assert load_weights(Path("org"), subfolder="name/vae").params == SMALL


@pytest.mark.parametrize("path", ["name", "a/b/c", "/org/name", "../name", "./org/name", "org//name", "org/na me"])
def test_what_is_no_name_is_local(path):
    with pytest.raises(FileNotFoundError, match="does not exist; give a folder"):
        load_weights(path)


@pytest.mark.parametrize("path", ["runs/tiny", "org/ae.safetensors", "org/vae.ckpt", Path("org/name")])
def test_a_mistyped_path_is_never_asked_for(path):
    Path("runs").mkdir()
    with pytest.raises(FileNotFoundError, match=f"^{path} does not exist; for a model on .*, write hf:{path}$"):
        load_weights(path)


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:../x", "hf:org/name/../x", "hf:/org/name", "hf:org/name@"])
def test_what_begins_with_hf_and_is_no_name_is_refused(name):
    with pytest.raises(FileNotFoundError, match="is not a name on the Hugging Face hub; expected hf:org/name"):
        load_weights(name)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for name in ("org/name", "hf:org/name"):
        hint = re.escape(install_command("hub"))
        with pytest.raises(FileNotFoundError, match=f"hf:org/name is on .* needs .*: {hint}$"):
            load_weights(name)


# What is published: every copy of the weights has a number of its own.


def marked(mark: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {row.theirs: rng.standard_normal(row.torch_shape, np.float32) for row in expand(SMALL, "flux")}
    return tensors | {MARKED: np.full_like(tensors[MARKED], mark)}


def named(mark: float, layout: str = "diffusers") -> dict[str, np.ndarray]:
    return Weights(marked(mark), "flux", SMALL).to(layout)


def write_config(folder: Path, **more) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(write_diffusers_config(SMALL) | more))


def write_msgpack(path: Path, mark: float) -> None:
    ours = Weights(marked(mark), "flux", SMALL)
    flat = {row.ours: row.op.to_flax(ours.tensors[row.theirs]) for row in expand(SMALL, "flux")}
    leaves = {row.theirs: row.op.to_torch(flat[row.ours]) for row in expand(SMALL, "diffusers-flax")}
    path.write_bytes(serialization.to_bytes(unflatten({name: np.ascontiguousarray(a) for name, a in leaves.items()})))


def write_shards(folder: Path, stem: str, mark: float) -> None:
    tensors, places = named(mark), {}
    for number, names in enumerate(np.array_split(sorted(tensors), 2), 1):
        shard = f"{stem}-0000{number}-of-00002.safetensors"
        write_tensors(folder / shard, {name: tensors[name] for name in names})
        places |= dict.fromkeys(map(str, names), shard)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("published")
    write_config(root / "flax", _class_name="FlaxAutoencoderKL", _use_default_values=["scaling_factor"])
    write_msgpack(root / "flax" / "diffusion_flax_model.msgpack", 1)
    for folder in ("copies", "half", "shards", "pickled", "pipeline/vae", "pipeline/unet"):
        write_config(root / folder)
    for name, mark in ((f"{DIFFUSERS}.safetensors", 2), (f"{DIFFUSERS}.fp16.safetensors", 3)):
        write_tensors(root / "copies" / name, named(mark))
    write_msgpack(root / "copies" / "diffusion_flax_model.msgpack", 4)
    (root / "copies" / f"{DIFFUSERS}.bin").write_bytes(b"a pickle")
    write_tensors(root / "copies" / FULL, marked(5))
    write_tensors(root / "half" / f"{DIFFUSERS}.fp16.safetensors", named(6))
    write_shards(root / "shards", DIFFUSERS, 7)
    write_shards(root / "shards", f"{DIFFUSERS}.fp16", 8)
    write_msgpack(root / "pickled" / "diffusion_flax_model.msgpack", 9)
    (root / "pickled" / f"{DIFFUSERS}.bin").write_bytes(b"a pickle")
    write_tensors(root / "pipeline" / "vae" / f"{DIFFUSERS}.safetensors", named(10))
    write_tensors(root / "pipeline" / "ae.safetensors", marked(11))
    write_tensors(root / "pipeline" / "unet" / f"{DIFFUSERS}.safetensors", {"a": np.ones(2)})
    (root / "pipeline" / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (root / "pipeline" / "model_index.json").write_text("{}")
    save_folder(root / "ours" / "export", SMALL, marked(12))
    tiny = TinyAutoEncoderParams(z_channels=4, ch=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    numbers = {row.theirs: np.full(row.torch_shape, 13, np.float32) for row in expand(tiny)}
    save_weights(root / "halves", Weights(numbers, "flux", tiny), "taesd")
    return root


@pytest.fixture(scope="module")
def hub(published):
    server = Hub()
    server.add("org/flax", published / "flax")
    server.add("org/flax", published / "copies", "refs/pr/1")
    server.add("org/gated", published / "half")
    server.gated["org/gated"] = "hf_secret"
    server.add("org/pipeline", published / "pipeline")
    server.add("org/copies", published / "copies")
    server.broken.add("org/broken")
    server.revisions["org/text", "main"] = {"README.md": b"no weights"}
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with Client(hub, tmp_path_factory.mktemp("client")) as client:
        yield client


SHARDS = [f"{DIFFUSERS}-00001-of-00002.safetensors", f"{DIFFUSERS}-00002-of-00002.safetensors"]
INDEX = f"{DIFFUSERS}.safetensors.index.json"
CONFIG, MSGPACK = "config.json", "diffusion_flax_model.msgpack"
# Of each kind: the folder of `published`, what is asked for in it, which copy is read, and what is downloaded.
KINDS = {
    "msgpack": ("flax", "", {}, 1, [CONFIG, MSGPACK]),
    "several copies": ("copies", "", {}, 2, [CONFIG, f"{DIFFUSERS}.safetensors"]),
    "variant": ("copies", "", {"variant": "fp16"}, 3, [CONFIG, f"{DIFFUSERS}.fp16.safetensors"]),
    "copy by name": ("copies", f"/{MSGPACK}", {}, 4, [CONFIG, MSGPACK]),
    "small decoder": ("copies", f"/{FULL}", {"architecture": SMALL.to_dict()}, 5, [FULL]),
    "only variant": ("half", "", {}, 6, [CONFIG, f"{DIFFUSERS}.fp16.safetensors"]),
    "shards": ("shards", "", {}, 7, [CONFIG, INDEX, *SHARDS]),
    "shards of a variant": (
        "shards", "", {"variant": "fp16"}, 8,
        [CONFIG, *(name.replace("model", "model.fp16") for name in (INDEX, *SHARDS))],
    ),
    "shards by index": ("shards", f"/{INDEX}", {}, 7, [CONFIG, INDEX, *SHARDS]),
    "msgpack before pickles": ("pickled", "", {}, 9, [CONFIG, MSGPACK]),
    "subfolder": ("pipeline", "", {"subfolder": "vae"}, 10, [f"vae/{CONFIG}", f"vae/{DIFFUSERS}.safetensors"]),
    "ae.safetensors": ("pipeline", "/ae.safetensors", {"architecture": SMALL.to_dict()}, 11, ["ae.safetensors"]),
    "two halves": ("halves", "", {}, 13, ["decoder.safetensors", "encoder.safetensors"]),
    "half by name": ("halves", "/decoder.safetensors", {}, 13, ["decoder.safetensors", "encoder.safetensors"]),
    "ours": ("ours", "/export", {}, 12, [f"export/{CONFIG}", "export/model.safetensors"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_repository(hub, published, client, kind):
    folder, inside, options, mark, downloaded = KINDS[kind]
    name = f"org/{kind.replace(' ', '-')}"
    hub.add(name, published / folder)
    hub.asked.clear()
    answer = client.load(f"hf:{name}{inside}", **options)
    assert answer.get("mark") == mark, answer
    assert hub.downloads() == sorted(downloaded)
    hub.asked.clear()
    assert client.load(f"hf:{name}{inside}@main", **options) == answer
    assert hub.downloads() == []
    if KEEPS_LISTS:
        assert hub.asked == [f"GET /api/models/{name}/revision/main"]  # which tells that nothing is new


@pytest.mark.torch
def test_a_repository_of_pickles(hub, tmp_path, client):
    import torch

    write_config(tmp_path / "pickles")
    tensors = {name: torch.from_numpy(array) for name, array in named(13).items()}
    torch.save(tensors, tmp_path / "pickles" / f"{DIFFUSERS}.bin")
    hub.add("org/pickles", tmp_path / "pickles")
    assert client.load("org/pickles")["mark"] == 13


def test_a_configuration_is_downloaded_alone(monkeypatch, tmp_path):
    write_config(tmp_path / "vae")
    asked = []
    monkeypatch.setattr(hub_module, "_fetch", lambda name, files: asked.append((name, files)) or tmp_path)
    assert find_config("org/name", "flax", "vae") == tmp_path / "vae" / "config.json"
    assert asked == [(HubName("org/name", "vae", "flax"), ["vae/config.json"])]
    with pytest.raises(FileNotFoundError, match=r"hf:org/name has no config\.json; give the folder that holds it"):
        find_config("org/name")


def test_revisions(hub, client):
    assert client.load("org/flax")["mark"] == 1
    assert client.load("org/flax", revision="refs/pr/1")["mark"] == 2
    assert client.load("hf:org/flax@refs/pr/1", variant="fp16")["mark"] == 3
    commit, _ = hub.find("org/flax", "refs/pr/1")
    assert client.load("org/flax", revision=commit)["mark"] == 2
    assert client.load("org/flax")["mark"] == 1


PAGE = "accept its terms at https://huggingface.co/org/gated, then run hf auth login, or set HF_TOKEN"
REFUSED = {
    "hf:org/gated": f"hf:org/gated: download from the Hugging Face hub failed: it is gated: {PAGE}",
    "hf:org/text/x.bin": "hf:org/text/x.bin: the repository has no file x.bin in its root; it has no weights files at "
    "all",
    "hf:org/no": "hf:org/no: download from the Hugging Face hub failed: the repository does not exist or is private: "
    "check the name, or run hf auth login, or set HF_TOKEN",
    "hf:org/flax@no": "hf:org/flax@no: download from the Hugging Face hub failed: it has no revision 'no'; name a "
    "branch, a tag or a commit",
    "hf:org/broken": "hf:org/broken: download from the Hugging Face hub failed: the hub answers with status 503, and "
    "it is not in the local cache; try again later",
    "hf:org/pipeline": "hf:org/pipeline: the repository has no weights of a known name in its root; choose one of: "
    "hf:org/pipeline/ae.safetensors, hf:org/pipeline/vae, hf:org/pipeline/unet",
    "hf:org/pipeline/text": "hf:org/pipeline/text: the repository has no weights of a known name in its folder text; "
    "choose one of: hf:org/pipeline/ae.safetensors, hf:org/pipeline/vae, hf:org/pipeline/unet",
    "hf:org/text": "hf:org/text: the repository has no weights of a known name in its root; it has no weights files "
    "at all",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_hub_does_not_give_is_one_line(client, name):
    assert client.load(name) == {"error": REFUSED[name], "kind": "FileNotFoundError"}


def test_a_wrong_token_is_named(hub, tmp_path):
    with Client(hub, tmp_path / "home", HF_TOKEN="hf_wrong") as client:
        error = client.load("org/flax")["error"]
    assert (
        error == "hf:org/flax: download from the Hugging Face hub failed: the hub does not accept the token; run hf "
        "auth login, or set HF_TOKEN"
    )


def test_another_model_is_refused_before_its_weights_are_downloaded(hub, client):
    hub.asked.clear()
    answer = client.load("org/pipeline", subfolder="unet")
    assert answer["kind"] == "ConversionError" and "'UNet2DConditionModel'; expected one of" in answer["error"]
    assert hub.downloads() == ["unet/config.json"]


def test_a_variant_that_is_not_there(client):
    assert "hf:org/copies holds no variant 'bf16'; found fp16" in client.load("org/copies", variant="bf16")["error"]
    answer = client.load(f"hf:org/copies/{FULL}", variant="fp16")
    assert answer["error"].endswith(f"chooses in a folder, and hf:org/copies/{FULL} is a file; leave it out")


def test_what_was_loaded_once_needs_no_network(hub, tmp_path):
    home = tmp_path / "home"
    names = {"org/flax": None, "hf:org/flax@refs/pr/1": "fp16", "org/gated": None if KEEPS_LISTS else "fp16"}
    with Client(hub, home, HF_TOKEN="hf_secret") as client:
        answers = [client.load(name, variant=variant) for name, variant in names.items()]
    assert [answer["mark"] for answer in answers] == [1, 3, 6]
    for address, environment in ((hub, {"HF_HUB_OFFLINE": "1"}), (None, {})):
        hub.asked.clear()
        what = "; unset HF_HUB_OFFLINE to download it" if environment else ", and the hub cannot be reached; check"
        with Client(address, home, **environment) as client:
            assert [client.load(name, variant=variant) for name, variant in names.items()] == answers
            for name in ("hf:org/copies", "hf:org/flax@refs/pr/1")[: 1 + (KEEPS_LISTS and bool(environment))]:
                error = client.load(name)["error"]
                assert f"{name}: download from the Hugging Face hub failed: it is not in the local cache{what}" in error
        assert hub.asked == []
    # A cache of an earlier release of the library, without lists of files, may lack the copy in full precision.
    for path in home.rglob("trees/*.json"):
        path.unlink()
    with Client(hub, home, HF_HUB_OFFLINE="1") as client:
        assert client.load("org/flax")["mark"] == 1
        assert client.load("org/gated")["error"].startswith(
            "hf:org/gated: the local cache holds only the variant 'fp16'"
        )
        assert client.load("org/gated", variant="fp16")["mark"] == 6


def test_commands_take_names(hub, tmp_path):
    code = (
        "import sys; from flax_vae.convert.cli.main import main\n"
        "for words in ('inspect org/flax', 'inspect hf:org/gated', 'inspect hf:org/no', "
        "'inspect hf:org/flax@refs/pr/1', 'hf:org/pipeline/vae out --to flux'):\n"
        "    print('ended with', main(words.split()))"
    )
    more = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ | more, capture_output=True, text=True)
    assert [line for line in ended.stdout.splitlines() if "ended" in line] == [
        f"ended with {i}" for i in (1, 1, 1, 0, 0)
    ]
    errors = ended.stderr.splitlines()
    assert len(errors) == 3, errors
    for error, hint in zip(errors, ("write hf:org/flax", PAGE, "check the name, or run hf auth login"), strict=True):
        assert hint in error
    assert load_weights("out").params == SMALL


@pytest.fixture
def copy(published, monkeypatch):
    """Names on the hub are copies in a folder here, for programs of JAX and PyTorch; notes what was asked for."""
    asked = []

    def download(name, variant):
        asked.append((str(name), variant))
        return published / "copies" / f"{DIFFUSERS}.safetensors"

    monkeypatch.setattr(opening, "download", download)
    return asked


def test_the_models_of_commands_and_of_runs_are_paths(copy):
    from flax_vae.inference.model import load_model
    from flax_vae.train.build import load_start
    from flax_vae.train.config.schema import TrainConfig
    from flax_vae.train.errors import RunError

    with pytest.raises(FileNotFoundError, match="write hf:org/name$"):
        load_model("org/name", None, "float32")
    with pytest.raises(RunError, match="start_from='org/name' cannot be loaded: .* write hf:org/name$"):
        load_start(TrainConfig(model=SMALL, start_from="org/name"))
    assert copy == []
    assert load_start(TrainConfig(model=SMALL, start_from="hf:org/name@main")) is not None
    assert copy == [("hf:org/name@main", None)]


def test_python_names_the_hub(copy):
    import flax_vae

    assert flax_vae.from_pretrained("org/name", revision="a/b", subfolder="vae", variant="fp16")[0].params == SMALL
    assert flax_vae.from_pretrained(Path("hf:org/name"))[0].params == SMALL
    with pytest.raises(FileNotFoundError, match="write hf:org/name$"):
        flax_vae.from_pretrained(Path("org/name"))
    assert copy == [("hf:org/name/vae@a/b", "fp16"), ("hf:org/name", None)]


@pytest.mark.torch
def test_pytorch_names_the_hub_in_the_same_way(copy):
    import torch_ref.loading

    assert torch_ref.loading.from_pretrained("org/name", revision="a/b", subfolder="vae").params == SMALL
    assert copy == [("hf:org/name/vae@a/b", None)]
