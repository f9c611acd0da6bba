"""What a heap of tensors is: layout, architecture, prefix; and what is refused, with the nearest and the difference."""

from dataclasses import replace

import numpy as np
import pytest

from flax_vae.convert import LAYOUTS, PRESETS, ConversionError, expand
from flax_vae.convert.errors import FileError
from flax_vae.convert.formats.safetensors import write_tensors
from flax_vae.convert.table.identification import NOT_INFERABLE, fitting_presets, identify, nearest_preset
from flax_vae.convert.table.rows import READABLE, translate
from flax_vae.convert.weights.folder import save_folder
from flax_vae.convert.weights.load import load_weights

TINY = PRESETS["tiny"]
SQUARE = replace(PRESETS["sd1"], ch=32, ch_mult=(1, 2), num_res_blocks=1)


def zeros(params, layout="flux", prefix=""):
    """Every tensor of a model, without memory."""
    return {
        prefix + row.theirs: np.broadcast_to(np.zeros((), np.float32), row.torch_shape)
        for row in expand(params, layout)
    }


def untold(params):
    return replace(params, **NOT_INFERABLE)


def expressible(layout):
    for name, params in PRESETS.items():
        try:
            expand(params, layout)
        except ConversionError:
            continue
        yield name


@pytest.mark.parametrize(("layout", "preset"), [(layout, name) for layout in READABLE for name in expressible(layout)])
def test_layout_and_architecture_are_recognised(layout, preset):
    params = PRESETS[preset]
    weights = identify(zeros(params, layout))
    assert not weights.config_known
    assert replace(weights.params, **NOT_INFERABLE) == untold(params)
    # Names alone do not tell layouts apart that give a model the same names.
    assert {row.theirs for row in expand(params, weights.layout)} == {row.theirs for row in expand(params, layout)}
    known = identify(zeros(params, layout), params)
    assert known.config_known
    assert known.params == params


@pytest.mark.parametrize(
    "prefix",
    [
        *("first_stage_model.", "vae.", "module.", "_orig_mod.", "module.first_stage_model."),
        *("model.", "ema.", "net.", "student.", "conditioner.embedders.3.encoder."),
    ],
)
def test_prefixes_of_the_wild(prefix):
    tensors = zeros(TINY, "ldm", prefix) | {"cond_stage.out.weight": np.zeros(3)}
    weights = identify(tensors, TINY)
    assert weights.prefix == prefix
    assert weights.left_out == ("cond_stage.out.weight",)
    assert set(weights.tensors) == {row.theirs for row in expand(TINY, "ldm")}


def test_the_training_baggage_of_ldm_is_left_out():
    baggage = {
        "loss.logvar": np.zeros(()),
        "loss.discriminator.main.0.weight": np.zeros(3),
        "model_ema.decay": np.ones(1),
    }
    weights = identify(zeros(TINY, "ldm") | baggage, TINY)
    assert set(weights.left_out) == set(baggage)


def test_no_autoencoder_is_refused():
    with pytest.raises(ConversionError, match="not the weights of an autoencoder"):
        identify({"lm_head.weight": np.zeros((2, 2))})


def test_of_several_autoencoders_one_is_chosen():
    tensors = zeros(TINY) | {key: np.ones(t.shape) for key, t in zeros(TINY, prefix="vae.").items()}
    with pytest.raises(ConversionError, match=r"several autoencoders, under '', 'vae.'; choose one with .*--prefix"):
        identify(tensors)
    for prefix, value in (("", 0), ("vae.", 1), ("vae", 1)):
        weights = identify(tensors, TINY, prefix=prefix)
        assert all(tensor.flat[0] == value for tensor in map(np.asarray, weights.tensors.values()))
        assert len(weights.left_out) == len(weights.tensors)
    with pytest.raises(ConversionError, match="no autoencoder under 'ema.'; found '', 'vae.'"):
        identify(tensors, prefix="ema.")


def test_names_of_wrappers_within_the_halves_are_passed_over():
    names = {"encoder.": "encoder._orig_mod.", "decoder.mid.": "decoder.module.mid.", "quant": "_orig_mod.quant"}

    def wrapped(key):
        for start, there in names.items():
            key = there + key.removeprefix(start) if key.startswith(start) else key
        return key

    tensors = {wrapped(key): tensor for key, tensor in zeros(TINY).items()}
    assert set(identify(tensors, TINY).tensors) == set(zeros(TINY))
    with pytest.raises(ConversionError, match="two tensors 'encoder.conv_in.bias', one of them inside a wrapper"):
        identify(tensors | {"encoder.conv_in.bias": np.zeros(32)}, TINY)


@pytest.mark.parametrize("prefix", ["", "vae."])
@pytest.mark.parametrize(("half", "other"), [("a decoder", "an encoder"), ("an encoder", "a decoder")])
def test_half_an_autoencoder_is_called_so(half, other, prefix):
    tensors = {key: t for key, t in zeros(TINY, prefix=prefix).items() if half.split()[1] in key}
    under = f" .under '{prefix}'." if prefix else ""
    with pytest.raises(ConversionError, match=f"only {half}{under}; expected .* the rest of {other}"):
        identify(tensors, TINY)


@pytest.mark.parametrize("layout", ["flux", "ldm", "diffusers", "diffusers-legacy"])
@pytest.mark.parametrize("ones", [0, 1, 2])
def test_convolutions_of_one_pixel_may_be_matrices_and_back(layout, ones):
    rng = np.random.default_rng(0)
    expected = {row.theirs: rng.standard_normal(row.torch_shape) for row in expand(SQUARE, layout)}
    rows = [row.theirs for row in expand(SQUARE, layout) if row.shape[:2] == (1, 1)]
    assert len(rows) > 8
    given = expected | {key: expected[key].reshape(*expected[key].shape[:2], *(1,) * ones) for key in rows}
    found = identify(given, SQUARE).tensors
    assert all(np.array_equal(np.asarray(found[key]), array) for key, array in expected.items())
    given[rows[0]] = given[rows[0]].reshape(1, *given[rows[0]].shape)
    with pytest.raises(ConversionError, match="misshapen"):
        identify(given, SQUARE)


def test_widths_that_cannot_be_expressed_are_said():
    tensors = zeros(TINY) | {"encoder.down.1.block.0.conv1.weight": np.zeros((48, 96, 3, 3))}
    with pytest.raises(ConversionError, match=r"its levels have widths \[96, 48, 128\]"):
        identify(tensors)


def test_models_of_compvis_are_called_ldm():
    assert identify(zeros(PRESETS["sd1"])).layout == "ldm"
    assert identify(zeros(PRESETS["flux1"])).layout == "flux"
    assert identify(zeros(PRESETS["sd3"], prefix="first_stage_model.")).layout == "ldm"
    assert identify(zeros(PRESETS["sd1"]), PRESETS["sd1"], layout="flux").layout == "flux"


def test_the_difference_from_the_nearest_layout_is_listed():
    tensors = zeros(TINY, "diffusers")
    del tensors["encoder.mid_block.attentions.0.to_q.bias"]
    tensors["encoder.mid_block.attentions.0.extra"] = np.zeros(2)
    with pytest.raises(ConversionError) as caught:
        identify(tensors)
    message = str(caught.value)
    assert "'diffusers' layout" in message
    assert "1 missing, 1 unexpected" in message
    assert "encoder.mid_block.attentions.0.to_q.bias" in message


def test_another_architecture_than_was_said_is_explained():
    with pytest.raises(ConversionError, match="^the shapes belong to another architecture: ch is 32, not 128; "):
        identify(zeros(TINY), PRESETS["flux1"])


def test_a_resolution_never_stops_a_load(tmp_path):
    save_folder(tmp_path / "model", replace(TINY, resolution=1024), zeros(TINY))
    assert load_weights(tmp_path / "model", "tiny").config_known
    assert load_weights(tmp_path / "model", replace(TINY, resolution=32)).params.resolution == 1024
    with pytest.raises(ConversionError, match="weights, downsample_padding is 'asymmetric', not 'symmetric'$"):
        load_weights(tmp_path / "model", replace(TINY, resolution=32, downsample_padding="symmetric"))


def test_what_makes_two_architectures_one_function():
    assert TINY.differences(replace(TINY, resolution=8)) == []
    assert TINY.differences(replace(TINY, scale_factor=2.0, downsample_padding="symmetric")) == [
        *("scale_factor", "downsample_padding"),
    ]
    one_level = replace(TINY, ch_mult=(3,))
    assert one_level.differences(replace(one_level, downsample_padding="symmetric")) == []


def test_presets_that_fit_and_the_nearest():
    assert fitting_presets(untold(PRESETS["flux1"])) == ["flux1", "flux1-reflect", "sd3"]
    assert fitting_presets(untold(PRESETS["flux2-small-decoder"])) == ["flux2-small-decoder"]
    assert fitting_presets(untold(PRESETS["cogview4"])) == ["cogview4", "glm-image"]
    assert nearest_preset(replace(PRESETS["flux1"], z_channels=8))[1] == ["z_channels is 8, not 16"]


def test_padding_is_never_guessed(tmp_path):
    write_tensors(tmp_path / "ae.safetensors", zeros(TINY))
    with pytest.raises(
        ConversionError, match=r"does not define scale, shift and padding; the tensors fit tiny; .*--preset"
    ):
        load_weights(tmp_path / "ae.safetensors")
    assert load_weights(tmp_path / "ae.safetensors", "tiny").params == TINY
    with pytest.raises(ValueError, match="unknown preset 'tinny'"):
        load_weights(tmp_path / "ae.safetensors", "tinny")
    other = replace(TINY, z_channels=5)
    write_tensors(tmp_path / "other.safetensors", zeros(other))
    with pytest.raises(ConversionError, match=r"the nearest preset is tiny \(z_channels is 5, not 16\)"):
        load_weights(tmp_path / "other.safetensors")
    assert load_weights(tmp_path / "other.safetensors", other).params == other
    with pytest.raises(FileError):
        (tmp_path / "bad.safetensors").write_bytes(b"no")
        load_weights(tmp_path / "bad.safetensors", "tiny")


POOL = np.random.default_rng(0).standard_normal(65_537).astype(np.float32)  # drawn once; a prime, so that no axis fits


def random_tensors(params, layout, dtype):
    pool = POOL.astype(dtype)
    return {
        row.theirs: np.array(7) if "tracked" in row.theirs else np.resize(pool[place:], row.torch_shape)
        for place, row in enumerate(expand(params, layout))
    }


SMALL = {  # the presets' switches at small widths, so that all pairs of layouts take a moment
    name: replace(
        params,
        ch=32,
        num_res_blocks=1,
        resolution=256,
        decoder_widths=params.decoder_widths and (64, 32, 96, 32),
    )
    for name, params in PRESETS.items()
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("preset", SMALL)
def test_any_layout_to_any_other_and_back_is_bit_identical(preset, dtype):
    import ml_dtypes

    params = SMALL[preset]
    known = [layout for layout in LAYOUTS if not _refused(params, layout)]
    assert "flux" in known
    for source in known:
        tensors = random_tensors(params, source, {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype))
        for target in known:
            there = translate(tensors, params, source, target)
            assert there.keys() == {row.theirs for row in expand(params, target)}
            back = translate(there, params, target, source)
            assert back.keys() == tensors.keys()
            for key, array in tensors.items():
                assert back[key].dtype == array.dtype
                assert back[key].tobytes() == array.tobytes(), (source, target, key)


def _refused(params, layout):
    try:
        expand(params, layout)
    except ConversionError as error:
        assert "has no name for" in str(error)
        return True
    return False


def test_what_has_no_name_is_refused_with_a_sentence():
    for layout in ("ldm", "diffusers", "flux2"):
        with pytest.raises(ConversionError, match=f"the '{layout}' layout has no name for .*time_mlp.*'flux' layout"):
            expand(PRESETS["seed"], layout)
    with pytest.raises(ValueError, match="layout 'diffusers-legacy' cannot be written"):
        translate(zeros(TINY), TINY, "flux", "diffusers-legacy")
