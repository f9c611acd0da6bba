import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from flax_vae.convert import PRESETS, ConversionError, expand
from flax_vae.convert.errors import FileError
from flax_vae.convert.formats.safetensors import write_tensors
from flax_vae.convert.table.identification import Weights
from flax_vae.convert.weights.folder import load_folder, read_config, save_folder, write_config
from flax_vae.convert.weights.load import load_weights
from flax_vae.convert.weights.save import save_weights
from tests.convert.samples import assert_same, everything_in, random_weights

TINY = PRESETS["tiny"]


@pytest.fixture
def folder(tmp_path) -> Path:
    save_folder(tmp_path / "model", TINY, random_weights())
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_model_returns_bit_for_bit(tmp_path, dtype):
    weights = random_weights(dtype=dtype)
    save_folder(tmp_path / "model", TINY, weights)
    for path in (tmp_path / "model", str(tmp_path / "model"), tmp_path / "model" / "model.safetensors"):
        params, state_dict = load_folder(path)
        assert params == TINY
        assert_same(state_dict, weights)
    assert sorted(everything_in(tmp_path)) == ["model", "model/config.json", "model/model.safetensors"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_returns_from_its_config(tmp_path, name):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PRESETS[name].to_dict()))
    assert read_config(path) == PRESETS[name]


def test_the_config_is_flat_and_complete(folder):
    fields = json.loads((folder / "config.json").read_text())
    assert fields == TINY.to_dict()
    assert fields["downsample_padding"] == "asymmetric"  # nothing else would tell it from the other one


def test_an_existing_model_is_kept_unless_forced(folder, tmp_path):
    before = everything_in(tmp_path)
    with pytest.raises(FileExistsError, match="exists already; replace it with force=True"):
        save_folder(folder, TINY, random_weights(1))
    assert everything_in(tmp_path) == before
    save_folder(folder, TINY, random_weights(1), force=True)
    assert_same(load_folder(folder)[1], random_weights(1))
    assert everything_in(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("stranger", ["notes.txt", ".hidden", "samples/0.png"])
def test_a_folder_that_holds_anything_else_is_never_replaced(folder, tmp_path, stranger, force):
    (folder / stranger).parent.mkdir(exist_ok=True)
    (folder / stranger).write_text("precious")
    before = everything_in(tmp_path)
    with pytest.raises(FileExistsError, match=rf"more than a model \({stranger.split('/')[0]}\).*choose another name"):
        save_folder(folder, TINY, random_weights(1), force=force)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_never_replaced_by_a_folder(tmp_path, force):
    (tmp_path / "model").write_text("precious")
    with pytest.raises(FileExistsError, match="is a file; a model folder needs a name of its own"):
        save_folder(tmp_path / "model", TINY, random_weights(), force=force)
    assert everything_in(tmp_path) == {"model": b"precious"}


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "model").mkdir()
    save_folder(tmp_path / "model", TINY, random_weights())
    assert load_folder(tmp_path / "model")[0] == TINY


def test_missing_folders_are_made(tmp_path):
    save_folder(tmp_path / "x" / "y" / "model", TINY, random_weights())
    assert load_folder(tmp_path / "x" / "y" / "model")[0] == TINY


def test_a_link_keeps_pointing_to_the_folder(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    save_folder(tmp_path / "link", TINY, random_weights(1), force=True)
    assert (tmp_path / "link").is_symlink()
    assert_same(load_folder(folder)[1], random_weights(1))


def test_weights_of_another_architecture_are_not_written(tmp_path):
    with pytest.raises(ConversionError, match="quant_conv"):
        save_folder(tmp_path / "model", replace(TINY, quant_conv=True), random_weights())
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("failure", [OSError("no space left"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize(
    "stage",
    [
        "files.whole_folder.Path.write_text",
        "files.whole_folder.sync_file",
        "weights.folder.write_tensors",
        "files.whole_folder._swap",
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_in_the_middle_leaves_everything_as_it_was(tmp_path, monkeypatch, failure, stage, existing):
    if existing:
        save_folder(tmp_path / "model", TINY, random_weights())
    before = everything_in(tmp_path)

    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(f"flax_vae.convert.{stage}", fail)
    with pytest.raises(type(failure)):
        save_folder(tmp_path / "model", TINY, random_weights(1), force=True)
    assert everything_in(tmp_path) == before


def test_a_failure_between_the_two_renames_puts_the_old_folder_back(folder, tmp_path, monkeypatch):
    before = everything_in(tmp_path)
    rename = Path.rename

    def fail_on_the_new_one(self, target):
        if self.suffix == ".partial":
            raise OSError("no such luck")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_new_one)
    monkeypatch.setattr(
        "flax_vae.convert.files.atomic._exchanged", lambda one, other: False
    )  # as where folders cannot change places
    with pytest.raises(OSError, match="no such luck"):
        save_folder(folder, TINY, random_weights(1), force=True)
    assert everything_in(tmp_path) == before


def test_the_old_folder_is_removed_last(folder, tmp_path, monkeypatch):
    seen = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **kwargs: (seen.append(load_folder(folder)[1]), rmtree(path, **kwargs))
    )
    save_folder(folder, TINY, random_weights(1), force=True)
    assert len(seen) == 1
    assert_same(seen[0], random_weights(1))


@pytest.mark.parametrize("absent", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, absent):
    (folder / absent).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {absent}; a model folder holds config.json and"):
        load_folder(folder)


def test_what_is_no_model_folder_is_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist; give a model folder"):
        load_folder(tmp_path / "absent")
    os.rename(folder / "model.safetensors", folder / "ae.safetensors")
    with pytest.raises(FileError, match="ae.safetensors is not a model folder; give a folder that holds"):
        load_folder(folder / "ae.safetensors")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "Expecting value"),
        (b'{"resolution": 64', "delimiter"),
        (b"\xff\xfe\xfa", "decode"),
        (b"[1, 2]", "it holds a list"),
        (b"{}", "no resolution, in_channels"),
        (b'{"resolutoin": 64}', "did you mean 'resolution'"),
        (json.dumps(TINY.to_dict() | {"ch_mult": 3}).encode(), "ch_mult=3 must be a list of whole numbers"),
        (json.dumps(TINY.to_dict() | {"ch": 33}).encode(), "make ch a multiple of 32"),
        (json.dumps(TINY.to_dict() | {"downsample_padding": "both"}).encode(), "'both' must be 'symmetric'"),
    ],
)
def test_a_config_that_cannot_be_understood_is_refused(folder, content, complaint):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(FileError, match=rf"config.json does not describe an autoencoder: .*{complaint}"):
        load_folder(folder)


def test_weights_that_do_not_fit_the_config_are_refused(folder):
    (folder / "config.json").write_text(json.dumps(replace(TINY, z_channels=4).to_dict()))
    with pytest.raises(ConversionError, match=r"model: .*misshapen[\s\S]*decoder.conv_in.weight"):
        load_folder(folder)


def test_truncated_weights_are_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="model.safetensors is not a complete safetensors file"):
        load_folder(folder)


def edit(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def test_a_configuration_that_was_not_written_with_the_weights_is_refused_until_it_is_declared(folder):
    edit(folder, scale_factor=0.5, resolution=32)
    with pytest.raises(FileError) as refused:
        load_folder(folder)
    expected = (
        "resolution is 32, and was written as 64; scale_factor is 0.5, and was written as 1.0. Put the old value back"
    )
    assert expected in str(refused.value)
    assert f"write_config({str(folder)!r})" in str(refused.value)
    assert load_folder(folder, verify=False)[0].scale_factor == 0.5
    write_config(folder)
    params, state_dict = load_folder(folder)
    assert params == replace(TINY, scale_factor=0.5, resolution=32)
    assert_same(state_dict, random_weights())
    write_config(folder, TINY)
    assert load_folder(folder)[0] == read_config(folder / "config.json") == TINY


def test_the_configuration_of_another_model_is_found(folder, tmp_path):
    save_folder(tmp_path / "other", replace(TINY, shift_factor=0.25), random_weights(1))
    shutil.copy(tmp_path / "other" / "config.json", folder)
    with pytest.raises(FileError, match="shift_factor is 0.25, and was written as 0.0"):
        load_folder(folder)


def test_a_folder_of_an_earlier_version_has_no_record_in_its_weights_and_opens(folder):
    write_tensors(folder / "model.safetensors", random_weights(), metadata={"format": "pt"}, force=True)
    edit(folder, scale_factor=0.5)
    assert load_folder(folder)[0].scale_factor == 0.5
    write_config(folder)
    edit(folder, scale_factor=0.25)
    with pytest.raises(FileError, match="scale_factor is 0.25, and was written as 0.5"):
        load_folder(folder)


def test_damaged_weights_are_not_written_again_with_a_new_digest(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    edit(folder, scale_factor=0.5)
    with pytest.raises(FileError, match="the data have SHA-256"):
        write_config(folder)
    assert path.read_bytes() == content


def test_a_folder_of_diffusers_is_guarded_in_what_is_computed(tmp_path):
    params = replace(TINY, ch_mult=(1, 1))
    zeros = {row.theirs: np.zeros(row.torch_shape, np.float32) for row in expand(params, "flux")}
    save_weights(tmp_path / "vae", Weights(zeros, "flux", params), "diffusers")
    edit(tmp_path / "vae", sample_size=1024, force_upcast=False)
    assert load_weights(tmp_path / "vae").params == replace(params, resolution=1024)
    edit(tmp_path / "vae", scaling_factor=0.5)
    with pytest.raises(FileError, match="scale_factor is 0.5, and was written as 1.0"):
        load_weights(tmp_path / "vae")
    with pytest.raises(ConversionError, match="clamp_logvar: a configuration of diffusers is changed in scale"):
        write_config(tmp_path / "vae", replace(params, clamp_logvar=not params.clamp_logvar))
    write_config(tmp_path / "vae")
    assert load_weights(tmp_path / "vae").params.scale_factor == 0.5
    shifted = replace(params, scale_factor=3.0, shift_factor=0.5)
    write_config(tmp_path / "vae", shifted)
    assert load_weights(tmp_path / "vae").params == replace(shifted, resolution=1024)
    assert json.loads((tmp_path / "vae" / "config.json").read_text())["force_upcast"] is False
