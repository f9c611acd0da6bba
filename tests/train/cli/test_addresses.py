"""Every command that reads images takes the same addresses, and finds the same images behind each."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flax_vae import AutoEncoder, save_pretrained
from flax_vae.cli import main as cli
from flax_vae.convert.latents.dataset import LatentDataset
from flax_vae.images.formats import ADDRESSES
from flax_vae.images.read import read_image
from flax_vae.train.cli import main as train_cli
from flax_vae.train.loop import train
from tests.flax_vae.images.sources.test_sources import (
    IMAGES,
    WRITERS,
    encoded,
    make_dataset,
    no_cache_of_datasets_outside,  # noqa: F401 - a fixture
    write_folder,
)
from tests.flax_vae.random_models import PLAIN, random_params


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a model."""
    folder = tmp_path_factory.mktemp("model") / "model"
    save_pretrained(folder, AutoEncoder(PLAIN), random_params(AutoEncoder(PLAIN)))
    return str(folder)


def encode(address, model, tmp_path, small, capsys):
    """Encodes, resumes after the loss of a shard, and decodes; returns the latents."""
    words = ["encode", address, str(tmp_path / "latents"), "--model", model, "--shard-size", "2"]
    assert cli.main(words) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "latents").iterdir()}
    (tmp_path / "latents" / "latents-00001.safetensors").unlink()
    assert cli.main(words) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "latents").iterdir()} == before
    latents = list(LatentDataset(tmp_path / "latents"))
    assert cli.main(["decode", str(tmp_path / "latents"), str(tmp_path / "decoded"), "--model", model]) == 0
    decoded = sorted((tmp_path / "decoded").glob("*.png"))
    assert [path.stem for path in decoded] == [str(index) for index in range(6)]
    assert {read_image(path).shape for path in decoded} == {(12, 17, 3)}
    assert len({entry["name"] for entry in latents}) == 6
    return np.stack([entry["latent"] for entry in latents])


def reconstruct(address, model, tmp_path, small, capsys):
    """Returns the scores that were printed."""
    assert cli.main(["reconstruct", address, "--limit", "3", "--out", str(tmp_path / "x.png"), "--model", model]) == 0
    *lines, _ = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    return [line.split(": ")[1] for line in lines]


def evaluate(address, model, tmp_path, small, capsys):
    """Returns the scores that were written."""
    words = ["eval", model, "--data", address, "--lpips", "none", "--json", str(tmp_path / "x.json")]
    assert train_cli.main(words) == 0
    images = json.loads((tmp_path / "x.json").read_text())["images"]
    assert len(images) == 6
    return [{key: value for key, value in image.items() if key != "name"} for image in images]


def learn(address, _, tmp_path, small, capsys):
    """Returns the weights after two steps."""
    model = replace(small.model, ch_mult=(1,))
    data = replace(small.data, folder=address, crop_size=8, held_out=None)
    config = replace(small, model=model, steps=2, data=data)
    train(config, tmp_path / "run")
    return (next((tmp_path / "run" / "export").glob("*.safetensors"))).read_bytes()


@pytest.fixture(scope="module")
def expected():
    """What each command gives for the folder of the images."""
    return {}


@pytest.mark.parametrize("command", [encode, reconstruct, evaluate, learn], ids=lambda command: command.__name__)
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))
def test_all_commands_take_all_addresses(write, command, expected, model, small, tmp_path, capsys):
    if command not in expected:
        (tmp_path / "plain").mkdir()
        address = write_folder(tmp_path / "plain" / "images")
        expected[command] = command(address, model, tmp_path / "plain", small, capsys)
        capsys.readouterr()
    found = command(write(tmp_path / "data"), model, tmp_path, small, capsys)
    np.testing.assert_equal(found, expected[command])


def test_a_data_set_that_grew_is_appended_and_one_that_changed_is_refused(model, tmp_path, capsys):
    words = ["encode", str(tmp_path / "x.npy"), str(tmp_path / "latents"), "--model", model]
    np.save(tmp_path / "x.npy", IMAGES[:3])
    assert cli.main(words) == 0
    earlier = (tmp_path / "latents" / "latents-00000.safetensors").read_bytes()
    np.save(tmp_path / "x.npy", IMAGES)
    assert cli.main(words) == 1
    assert "3 added (3, 4, 5); encode the new ones too with --append" in capsys.readouterr().err
    assert cli.main([*words, "--append"]) == 0
    assert (tmp_path / "latents" / "latents-00000.safetensors").read_bytes() == earlier
    assert [entry["name"] for entry in LatentDataset(tmp_path / "latents")] == list("012345")
    changed = IMAGES.copy()
    changed[4, 0, 0, 0] ^= 1
    np.save(tmp_path / "x.npy", changed)
    assert cli.main(words) == 1
    assert "1 images in" in (err := capsys.readouterr().err) and "changed since they were encoded (4)" in err


def test_bad_rows_are_named_once_and_passed_over(model, tmp_path, capsys):
    good = encoded(IMAGES[0])
    make_dataset([good, None, b"hello", good]).save_to_disk(tmp_path / "data")
    words = ["encode", f"hf:{tmp_path / 'data'}", str(tmp_path / "latents"), "--model", model]
    assert cli.main(words) == 1
    err = capsys.readouterr().err
    assert "data[1] is empty" in err and "data[2] is not an image" in err and "with --skip-bad 2" in err
    assert cli.main([*words, "--skip-bad", "2"]) == 0
    skipped = [json.loads(line)["name"] for line in (tmp_path / "latents" / "skipped.jsonl").read_text().splitlines()]
    assert skipped == ["1", "2"] and len(LatentDataset(tmp_path / "latents")) == 2
    for main, args in ((cli.main, ["reconstruct", words[1]]), (train_cli.main, ["eval", model, "--data", words[1]])):
        assert main([*args, *(["--model", model] if args[0] == "reconstruct" else ["--lpips", "none"])]) == 1
        err = capsys.readouterr().err
        assert "data[1] is empty" in err and "data[2] is not an image" in err


@pytest.mark.parametrize(
    ("main", "words"),
    [(cli.main, ["encode"]), (cli.main, ["reconstruct"]), (train_cli.main, ["eval"]), (train_cli.main, [])],
    ids=["encode", "reconstruct", "eval", "train"],
)
def test_help_lists_the_addresses_in_one_wording(main, words, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ADDRESSES in text


def test_the_guide_lists_the_addresses_in_the_same_words():
    page = Path(__file__).parents[3] / "docs" / "guides" / "encode-folders.md"
    assert ADDRESSES in " ".join(page.read_text(encoding="utf-8").split())
