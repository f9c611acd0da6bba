"""Any layout to any other and back, bit for bit; folders and files of each; nothing half written."""

import itertools
import json
import os
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from flax_vae.convert import LAYOUTS, PRESETS, ConversionError, expand
from flax_vae.convert.errors import FileError
from flax_vae.convert.formats.lazy import Deferred
from flax_vae.convert.formats.safetensors import list_tensors, read_metadata, read_tensors, write_tensors
from flax_vae.convert.table.identification import Weights
from flax_vae.convert.table.rows import translate
from flax_vae.convert.weights.folder import save_folder
from flax_vae.convert.weights.load import load_weights
from flax_vae.convert.weights.save import save_weights
from tests.convert.samples import assert_same, everything_in

SMALL = {  # every preset with its own levels and switches, and widths that take no time
    name: replace(
        params,
        ch=32,
        num_res_blocks=1,
        ch_mult=(1, *(2 for _ in params.ch_mult[1:])),
        decoder_widths=params.decoder_widths and (64, 32, 96, 32),
    )
    for name, params in PRESETS.items()
}
TINY = replace(SMALL["sd1"], scale_factor=0.5, shift_factor=0.25, quant_conv=False)
QUANT = replace(TINY, quant_conv=True)
POOL = np.random.default_rng(0).standard_normal(1 << 16, np.float32)


def random_weights(params=TINY, layout="flux", dtype=np.float32, seed=0) -> dict[str, np.ndarray]:
    """Different numbers in every tensor, drawn once."""
    pool = np.roll(POOL, seed).astype(dtype)
    return {
        row.theirs: np.array(7) if row.theirs.endswith("tracked") else np.resize(pool[place:], row.torch_shape)
        for place, row in enumerate(expand(params, layout))
    }


def names(params) -> list[str]:
    """The layouts that can express an architecture."""
    found = []
    for layout in LAYOUTS:
        try:
            expand(params, layout)
        except ConversionError:
            continue
        found.append(layout)
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("preset", SMALL)
def test_any_layout_to_any_other_and_back_is_bit_exact(preset, dtype):
    params = SMALL[preset]
    assert "flux" in names(params)
    for one, other in itertools.permutations(names(params), 2):
        weights = random_weights(params, one, dtype)
        there = translate(weights, params, one, other)
        assert_same(translate(there, params, other, one), weights)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_single_files_say_the_architecture_and_keep_every_bit(tmp_path, layout, dtype):
    path = tmp_path / "vae.safetensors"
    save_weights(path, Weights(random_weights(dtype=dtype), "flux", TINY), layout, metadata={"step": "3"})
    assert read_metadata(path)["step"] == "3"
    back = load_weights(path)
    assert back.params == TINY and back.config_known
    assert_same(back.to("flux"), random_weights(dtype=dtype))
    with pytest.raises(ConversionError, match="scale_factor is 0.5, not 0.3611"):
        load_weights(path, "flux1")


def test_a_damaged_entry_of_the_header_is_refused(tmp_path):
    for entry in ("{", '{"chanels": 3}', json.dumps(TINY.to_dict() | {"ch": 31})):
        path = tmp_path / "vae.safetensors"
        write_tensors(path, random_weights(), metadata={"autoencoder": entry}, force=True)
        with pytest.raises(FileError, match="'autoencoder' of its metadata describes no autoencoder"):
            load_weights(path)


@pytest.mark.parametrize(("layout", "weights"), [("flux", "model"), ("diffusers", "diffusion_pytorch_model")])
def test_folders(tmp_path, layout, weights):
    source = Weights(random_weights(), "flux", TINY)
    save_weights(tmp_path / "a" / "model", source, layout)
    expected = {"config.json", f"{weights}.safetensors"}
    assert {entry.name for entry in (tmp_path / "a" / "model").iterdir()} == expected
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["model"]
    back = load_weights(tmp_path / "a" / "model")
    assert back.params == TINY
    assert_same(back.to("flux"), random_weights())
    with pytest.raises(FileExistsError, match="--force"):
        save_weights(tmp_path / "a" / "model", source, layout)
    save_weights(tmp_path / "a" / "model", Weights(random_weights(seed=1), "flux", TINY), layout, force=True)
    assert_same(load_weights(tmp_path / "a" / "model").to("flux"), random_weights(seed=1))


def test_a_folder_of_diffusers_says_afterwards_what_it_said_before(tmp_path):
    save_weights(tmp_path / "a", Weights(random_weights(), "flux", TINY), "diffusers")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config |= {"force_upcast": False, "sample_size": [33, 64], "act_fn": "swish"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    save_weights(tmp_path / "b", load_weights(tmp_path / "a"), "diffusers")
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == config


@pytest.mark.parametrize(("one", "other"), [("flux", "diffusers"), ("diffusers", "flux")])
def test_a_folder_of_another_kind_is_never_replaced(tmp_path, one, other):
    source = Weights(random_weights(), "flux", TINY)
    save_weights(tmp_path / "model", source, one)
    before = everything_in(tmp_path)
    with pytest.raises(FileExistsError, match="and is never replaced"):
        save_weights(tmp_path / "model", source, other, force=True)
    assert everything_in(tmp_path) == before


@pytest.mark.parametrize(
    ("params", "name", "layout", "options", "message"),
    [
        (TINY, "model", "ldm", {}, "'ldm' layout has no folders.*call the file .*model.safetensors"),
        (TINY, "model", "flux", {"prefix": "vae."}, "takes no prefix"),
        (
            TINY,
            "model.safetensors",
            "flux",
            {"prefix": "vae"},
            "prefix='vae' is invalid; expected names",
        ),
        (TINY, "model.safetensors", "flux", {"prefix": "../"}, "prefix='../' is invalid"),
        (SMALL["seed"], "model.safetensors", "ldm", {}, "no name for encoder/down_0/block_0/time_mlp"),
        (SMALL["seed-flux"], "model.safetensors", "diffusers", {}, "pad asymmetrically only"),
        (SMALL["flux2"], "model.safetensors", "ldm", {}, "no name for bn/running_mean"),
        (SMALL["flux2"], "model", "diffusers-flax", {}, "no name for bn/running_mean"),
        (SMALL["kl-f16"], "model", "diffusers-flax", {}, "Flax class cannot express down_block_types=.*Attn.*; use"),
        (
            TINY,
            "model",
            "diffusers-flax",
            {},
            "cannot express use_post_quant_conv=False, use_quant_conv=False; use the",
        ),
        (QUANT, "model.safetensors", "diffusers-flax", {"prefix": "vae."}, "'diffusers-flax' layout takes none"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, params, name, layout, options, message):
    with pytest.raises(ConversionError, match=message):
        save_weights(tmp_path / name, Weights(random_weights(params), "flux", params), layout, **options)
    assert everything_in(tmp_path) == {}


@pytest.mark.parametrize("name", ["ae.sft", "vae.SAFETENSORS", "vae.Sft"])
def test_names_of_safetensors_become_one_file(tmp_path, name):
    save_weights(tmp_path / name, Weights(random_weights(), "flux", TINY), "ldm")
    assert (tmp_path / name).is_file()
    assert_same(load_weights(tmp_path / name).to("flux"), random_weights())


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("vae.pt", "vae.pt: .pt files are PyTorch's pickles, which are .* never written; give .*vae for a folder"),
        ("vae.v1.CKPT", "or .*vae.v1.safetensors for a file"),
        ("vae.bin", "or .*vae.safetensors for a file"),
        ("config.json", "files of .json are not written"),
    ],
)
def test_names_of_files_never_become_folders(tmp_path, name, complaint):
    source = Weights(random_weights(), "flux", TINY)
    for layout in ("flux", "diffusers", "ldm"):
        with pytest.raises(ConversionError, match=complaint):
            save_weights(tmp_path / name, source, layout)
    for other in (name, "vae.safetensors"):
        with pytest.raises(ConversionError, match="for a folder"):
            save_folder(tmp_path / other, TINY, random_weights())
    assert everything_in(tmp_path) == {}
    save_weights(tmp_path / "sd-v1.5", source, "flux")  # a dot alone makes no file
    assert (tmp_path / "sd-v1.5").is_dir()


@pytest.mark.parametrize("layout", ["flux", "diffusers"])
def test_a_part_of_a_model_is_never_replaced(tmp_path, layout):
    source = Weights(random_weights(), "flux", TINY)
    save_weights(tmp_path / "model", source, layout)
    (part,) = (tmp_path / "model").glob("*.safetensors")
    (tmp_path / "link.safetensors").symlink_to(part)
    before = everything_in(tmp_path)
    for path in (part, tmp_path / "link.safetensors"):
        with pytest.raises(ConversionError, match=f"{path} belongs to the config.json beside it; use the folder"):
            save_weights(path, source, "ldm", force=True)
    assert everything_in(tmp_path) == before
    (part.parent / "config.json").rename(part.parent / f"{part.stem}.safetensors.index.json")
    index = {"weight_map": {name: part.name for name in read_tensors(part)}}
    (part.parent / f"{part.stem}.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConversionError, match="is one of the shards of"):
        save_weights(part, source, "ldm", force=True)


@pytest.mark.parametrize("name", ["vae.safetensors", "vae"])
def test_nothing_is_written_through_a_link_to_nothing(tmp_path, name):
    (tmp_path / name).symlink_to("nowhere/deep")
    for force in (False, True):
        with pytest.raises(FileNotFoundError, match=f"{name} is a link to nowhere/deep, which does not exist; remove"):
            save_weights(tmp_path / name, Weights(random_weights(), "flux", TINY), "flux", force=force)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["vae.safetensors", "vae"])
def test_what_replaces_a_private_file_is_private_while_it_is_written(tmp_path, name):
    source = Weights(random_weights(), "flux", TINY)
    save_weights(tmp_path / name, source, "flux")
    (tmp_path / name).chmod(0o700)
    modes = []

    def watch(done, count):
        modes.extend(path.stat().st_mode & 0o077 for path in tmp_path.glob(".*.partial"))

    save_weights(tmp_path / name, source, "flux", force=True, progress=watch)
    assert set(modes) == {0}
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


def test_a_folder_of_the_former_flax_class(tmp_path):
    source = Weights(random_weights(QUANT), "flux", QUANT)
    save_weights(tmp_path / "vae", source, "diffusers-flax")
    assert sorted(os.listdir(tmp_path / "vae")) == ["config.json", "diffusion_flax_model.msgpack"]
    back = load_weights(tmp_path / "vae")
    assert back.params == QUANT and back.layout == "diffusers-flax"
    assert_same(back.to("flux"), random_weights(QUANT))
    back = replace(back, kept={"sample_size": 31})
    save_weights(tmp_path / "vae", back, "diffusers-flax", dtype="float16", force=True)
    back = load_weights(tmp_path / "vae")
    assert back.kept["sample_size"] == 31 and {t.dtype.name for t in back.tensors.values()} == {"float16"}
    save_weights(tmp_path / "torch", back, "diffusers")
    assert not load_weights(tmp_path / "torch").params.differences(QUANT)


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", "module.first_stage_model.", "my-own.net."])
def test_a_prefix_is_written_and_read(tmp_path, prefix):
    path = tmp_path / "vae.safetensors"
    save_weights(path, Weights(random_weights(), "flux", TINY), "ldm", prefix=prefix)
    assert set(read_tensors(path)) == {prefix + row.theirs for row in expand(TINY, "ldm")}
    assert load_weights(path).prefix == prefix


@pytest.mark.parametrize(
    ("name", "layout"), [*(("vae.safetensors", layout) for layout in LAYOUTS), ("vae", "flux"), ("vae", "diffusers")]
)
def test_tensors_are_made_one_at_a_time(tmp_path, name, layout):
    made, arrays = [], random_weights(layout="diffusers")

    def later(key: str) -> Deferred:
        return Deferred(arrays[key].shape, arrays[key].dtype, lambda: (made.append(key), arrays[key])[1])

    source = Weights({key: later(key) for key in arrays}, "diffusers", TINY)
    state_dict = source.to(layout)
    assert made == []  # the strict check looks at shapes only
    del state_dict
    save_weights(tmp_path / name, source, layout, dtype="bfloat16")
    assert sorted(made) == sorted(arrays)
    (path,) = tmp_path.rglob("*.safetensors")
    assert {info.dtype for info in list_tensors(path).values()} == {"bfloat16"}
    expected = {key: array.astype(ml_dtypes.bfloat16) for key, array in arrays.items()}
    assert_same(load_weights(tmp_path / name).to("diffusers"), expected)


@pytest.mark.parametrize("name", ["vae.safetensors", "vae"])
def test_a_failure_in_the_middle_leaves_everything_as_it_was(tmp_path, name):
    save_weights(tmp_path / name, Weights(random_weights(), "flux", TINY), "diffusers")
    before = everything_in(tmp_path)
    arrays = random_weights(seed=1)
    arrays["decoder.conv_out.bias"][0] = 1e9  # too large for float16, found out while it is written
    with pytest.raises(ConversionError, match="decoder.conv_out.bias' are too large for float16"):
        save_weights(tmp_path / name, Weights(arrays, "flux", TINY), "diffusers", dtype="float16", force=True)
    assert everything_in(tmp_path) == before


def test_a_preset_decides_what_a_configuration_of_diffusers_does_not_know(tmp_path):
    """No configuration holds the padding mode, and ERNIE-Image's has the epsilon of FLUX.2."""
    for name, change in (("sdxl", {"padding_mode": "reflect"}), ("flux2", {"batch_norm_eps": 1e-5})):
        params = SMALL[name]
        asked = replace(params, **change)
        weights = Weights(random_weights(params), "flux", params)
        save_weights(tmp_path / name, weights, "diffusers")
        assert load_weights(tmp_path / name).params == params
        assert load_weights(tmp_path / name, asked).params == asked
        # A configuration of ours holds everything, and a field of it is never passed over.
        save_weights(tmp_path / f"our {name}", weights)
        with pytest.raises(ConversionError, match=f"in the configuration beside the weights, {next(iter(change))} is "):
            load_weights(tmp_path / f"our {name}", asked)
        save_weights(tmp_path / f"{name}.safetensors", replace(weights, params=asked))
        assert load_weights(tmp_path / f"{name}.safetensors").params == asked  # its header says so
    with pytest.raises(ConversionError, match="padding_mode='reflect'"):
        save_weights(tmp_path / "x", replace(weights, params=replace(asked, padding_mode="reflect")), "diffusers")
