"""Names, files and configurations of tiny autoencoders, without a framework."""

import json
from dataclasses import replace

import numpy as np
import pytest

from flax_vae.convert import (
    LAYOUTS,
    PRESETS,
    TINY_PRESETS,
    ArgumentError,
    ConversionError,
    FileError,
    TinyAutoEncoderParams,
    expand,
    load_weights,
    preset,
    save_folder,
    save_weights,
    to_flax,
    to_torch,
)
from flax_vae.convert.architecture import architecture_from_dict, require_posterior
from flax_vae.convert.formats import write_tensors
from flax_vae.convert.table import TINY_LAYOUTS, Weights, flatten, identify, split_halves
from flax_vae.convert.table.tiny_autoencoder import TINY_FAMILIES
from flax_vae.convert.weights.diffusers_config import read_diffusers_config, write_diffusers_config
from flax_vae.convert.weights.folder import read_config

SMALL = TinyAutoEncoderParams(z_channels=3, ch=8, encoder_blocks=(1, 0, 2), decoder_blocks=(2, 1, 0))
POOLED = replace(SMALL, pool=True, patch=2, decoder_blocks=(1, 1, 1))
STUDENT = replace(POOLED, decoder_ch=4, decoder_pool=False)
MODELS = TINY_PRESETS | {
    "small": SMALL,
    "narrow decoder": replace(SMALL, decoder_ch=4),
    "pooled": POOLED,
    "student": STUDENT,
}


def random_weights(params, layout="flux"):
    rng = np.random.default_rng(0)
    return {row.theirs: rng.standard_normal(row.torch_shape, np.float32) for row in expand(params, layout)}


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("params", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("layout", TINY_FAMILIES)
def test_every_layout_is_recognised_with_its_architecture(params, layout):
    rows = expand(params, layout)
    weights = {row.theirs: np.broadcast_to(np.float32(0), row.torch_shape) for row in rows}
    assert len(weights) == len(expand(params)) == len({row.ours for row in rows})
    found = identify(weights)
    assert (found.layout, found.params, found.config_known) == (layout, params, True)


def test_the_counts_are_those_of_the_published_weights():
    rows = expand(TINY_PRESETS["taef2"], "taesd")
    assert (len(rows), sum(int(np.prod(row.shape)) for row in rows)) == (158, 2_677_027)
    assert len(expand(TINY_PRESETS["taesd"])) == 134


@pytest.mark.parametrize("params", [SMALL, POOLED], ids=["plain", "pooled"])
def test_arrays_go_to_every_layout_and_back_bit_for_bit(params):
    weights = random_weights(params)
    tree = to_flax(weights, params)
    assert flatten(tree)["encoder/down_0/downsample/kernel"].shape == (3, 3, 8, 8)
    for layout in TINY_LAYOUTS:
        there = to_torch(tree, params, layout)
        again = to_torch(to_flax(there, params), params)
        assert again.keys() == weights.keys()
        assert all(np.array_equal(again[key], array) for key, array in weights.items())


def test_what_has_no_name_is_refused():
    for layout in set(LAYOUTS) - set(TINY_LAYOUTS):
        with pytest.raises(
            ConversionError,
            match=f"'{layout}' layout has no names for a tiny autoencoder; use one of flux, diffusers, taesd$",
        ):
            expand(SMALL, layout)
    with pytest.raises(ConversionError, match="'taesd' layout has no names for an autoencoder of the FLUX family"):
        expand(PRESETS["flux1"], "taesd")
    with pytest.raises(ArgumentError, match="'flax' cannot be written; expected one of flux, diffusers, taesd"):
        to_torch(to_flax(random_weights(SMALL), SMALL), SMALL, "flax")


@pytest.mark.parametrize("params", [SMALL, POOLED], ids=["plain", "pooled"])
@pytest.mark.parametrize("layout", TINY_LAYOUTS)
def test_files_and_folders(params, layout):
    weights = random_weights(params)
    save_weights("one.safetensors", Weights(weights, "flux", params), layout)
    places = ["one.safetensors"]
    if layout == "diffusers" and params.pool:
        with pytest.raises(ConversionError, match="AutoencoderTiny has no pools"):
            save_weights("folder", Weights(weights, "flux", params), layout)
    else:
        save_weights("folder", Weights(weights, "flux", params), layout)
        places += ["folder"] + (["folder/encoder.safetensors", "folder/decoder.safetensors"] * (layout == "taesd"))
    for place in places:
        found = load_weights(place)
        assert found.params == params
        assert all(np.array_equal(array, weights[key]) for key, array in found.to("flux").items())


def test_a_half_without_the_other_and_halves_of_two_models_are_refused(tmp_path):
    halves = split_halves(random_weights(SMALL, "taesd"))
    write_tensors("taesd_encoder.safetensors", halves["encoder"])
    with pytest.raises(FileNotFoundError, match="half of a tiny autoencoder; put taesd_decoder.safetensors beside it"):
        load_weights(tmp_path / "taesd_encoder.safetensors")
    write_tensors("taesd_decoder.safetensors", halves["decoder"])
    assert load_weights(tmp_path).params == SMALL
    write_tensors("other_decoder.safetensors", halves["decoder"])  # without an encoder
    write_tensors("second_encoder.safetensors", halves["encoder"])
    write_tensors("second_decoder.safetensors", halves["decoder"])
    with pytest.raises(FileError, match="several models; give one of them: second_encoder.*, taesd_encoder"):
        load_weights(tmp_path)
    save_weights("pair", Weights(random_weights(POOLED), "flux", POOLED), "taesd")
    save_weights("other", Weights(random_weights(SMALL), "flux", SMALL), "taesd")
    (tmp_path / "other/decoder.safetensors").replace(tmp_path / "pair/decoder.safetensors")
    with pytest.raises(FileError, match="were not written together"):
        load_weights("pair")


def test_names_of_halves_are_also_names_of_other_files():
    """Two whole models may be called encoder and decoder, whatever that means to their owner."""
    for name in ("my_encoder", "my_decoder"):
        save_weights(f"{name}.safetensors", Weights(random_weights(SMALL), "flux", SMALL))
    assert load_weights("my_encoder.safetensors").kept == {}
    assert load_weights("my_encoder.safetensors").layout == "flux"


CONFIG = {"_class_name": "AutoencoderTiny", "latent_channels": 16, "latent_shift": 0.5, "block_out_channels": [64] * 4}


def test_diffusers_configurations():
    assert read_diffusers_config({"_class_name": "AutoencoderTiny"}) == TINY_PRESETS["taesd"]
    assert read_diffusers_config(CONFIG) == TINY_PRESETS["taef1"]
    for params in (TINY_PRESETS["taesd3"], SMALL):
        assert read_diffusers_config(write_diffusers_config(params)) == params
    assert write_diffusers_config(SMALL)["num_decoder_blocks"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"scaling_factor": 0.5}, "scaling_factor=0.5 is not supported; expected 1.0"),
        ({"act_fn": "silu"}, "act_fn='silu' is not supported"),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor=4 is not supported"),
        ({"pool": True}, "unknown keys, which may change what the model computes: pool=True"),
        ({"encoder_block_out_channels": [64, 32, 32, 32]}, "must be one width, repeated"),
        ({"num_encoder_blocks": [1, 3]}, "must be one width, repeated for each of the levels"),
        ({"decoder_block_out_channels": [32] * 3 + [64]}, "decoder_block_out_channels=.* must be one width"),
        ({"num_decoder_blocks": 3}, "decoder_block_out_channels=.* must be one width, .* num_decoder_blocks=3"),
        ({"latent_channels": "4"}, "z_channels='4' must be a whole number from 1 to"),
    ],
)
def test_configurations_that_cannot_be_expressed_are_refused(change, complaint):
    with pytest.raises(ConversionError, match=complaint):
        read_diffusers_config(CONFIG | change)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"z_channels": 0}, "z_channels=0 must be a whole number from 1 to"),
        ({"ch": True}, "ch=True must be a whole number"),
        ({"encoder_blocks": 3}, "encoder_blocks=3 must be a list"),
        ({"encoder_blocks": ()}, "must be a list of 1 to 12 numbers of blocks"),
        ({"decoder_blocks": (1, 2)}, "different numbers of levels"),
        ({"decoder_blocks": (1, -1, 1)}, "decoder_blocks=-1 must be a whole number from 0"),
        ({"patch": 3}, "patch=3 must be 1, or 2"),
        ({"patch": 2.0}, "patch=2.0 must be 1, or 2"),
        ({"pool": 1}, "pool=1 must be True or False"),
        ({"decoder_ch": 0}, "decoder_ch=0 must be a whole number from 1 to"),
        ({"decoder_pool": 1}, "decoder_pool=1 must be True or False, or None"),
    ],
)
def test_fields_are_checked(change, complaint):
    with pytest.raises(ArgumentError, match=complaint):
        replace(SMALL, **change)


def test_the_record_survives_json_and_tells_itself_from_the_other():
    for params in (*TINY_PRESETS.values(), SMALL, STUDENT, PRESETS["flux2"]):
        assert architecture_from_dict(json.loads(json.dumps(params.to_dict()))) == params
    assert (POOLED.factor, POOLED.latent_channels, SMALL.factor) == (8, 12, 4)
    assert preset("taef2") == TINY_PRESETS["taef2"]
    with pytest.raises(ArgumentError, match="family='large' must be 'tiny', or absent"):
        architecture_from_dict({"family": "large"})
    with pytest.raises(ArgumentError, match="unknown architecture field 'z_chanels'; did you mean 'z_channels'"):
        architecture_from_dict({"family": "tiny", "z_chanels": 4})
    with pytest.raises(ArgumentError, match="has no z_channels"):
        architecture_from_dict({"family": "tiny"})
    with pytest.raises(ConversionError, match="one architecture is that of a tiny autoencoder, the other that of an"):
        SMALL.differences(PRESETS["flux1"])
    with pytest.raises(ConversionError, match="the weights of a tiny autoencoder, which has no posterior"):
        require_posterior(SMALL)


def test_another_architecture_than_that_of_the_weights_is_refused():
    save_folder("model", SMALL, random_weights(SMALL))
    assert read_config("model/config.json") == SMALL
    with pytest.raises(ConversionError, match="in the configuration beside the weights, pool is False, not True"):
        load_weights("model", replace(SMALL, pool=True))
    with pytest.raises(ConversionError, match="one architecture is that of a tiny autoencoder"):
        load_weights("model", "flux1")
    write_tensors("bare.safetensors", random_weights(SMALL))
    with pytest.raises(ConversionError, match="a tiny autoencoder, not an autoencoder of the FLUX family"):
        load_weights("bare.safetensors", "flux1")
    with pytest.raises(ConversionError, match="ch is 8, not 64"):
        load_weights("bare.safetensors", "taesd")
