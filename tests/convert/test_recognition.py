"""What a heap of tensors is: layout, architecture, prefix; and what is refused, with the nearest and the difference."""

from dataclasses import replace

import numpy as np
import pytest

from convert import LAYOUTS, PRESETS, ConversionError, expand
from convert.errors import FileError
from convert.files import write_tensors
from convert.folder import save_folder
from convert.loading import load_weights
from convert.recognition import UNTOLD, fitting_presets, nearest_preset, understand
from convert.table import READABLE, translate

TINY = PRESETS["tiny"]


def zeros(params, layout="flux", prefix=""):
    """Every tensor of a model, without memory."""
    return {
        prefix + row.theirs: np.broadcast_to(np.zeros((), np.float32), row.torch_shape)
        for row in expand(params, layout)
    }


def untold(params):
    return replace(params, **UNTOLD)


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
    weights = understand(zeros(params, layout))
    assert not weights.settled
    assert replace(weights.params, **UNTOLD) == untold(params)
    # Names alone do not tell layouts apart that give a model the same names.
    assert {row.theirs for row in expand(params, weights.layout)} == {row.theirs for row in expand(params, layout)}
    settled = understand(zeros(params, layout), params)
    assert settled.settled
    assert settled.params == params


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", "module.", "_orig_mod.", "module.first_stage_model."])
def test_prefixes_of_the_wild(prefix):
    tensors = zeros(TINY, "ldm", prefix) | {"model.diffusion_model.out.weight": np.zeros(3)}
    weights = understand(tensors, TINY)
    assert weights.prefix == prefix
    assert weights.left_out == ("model.diffusion_model.out.weight",)
    assert set(weights.tensors) == {row.theirs for row in expand(TINY, "ldm")}


def test_the_training_baggage_of_ldm_is_left_out():
    baggage = {
        "loss.logvar": np.zeros(()),
        "loss.discriminator.main.0.weight": np.zeros(3),
        "model_ema.decay": np.ones(1),
    }
    weights = understand(zeros(TINY, "ldm") | baggage, TINY)
    assert set(weights.left_out) == set(baggage)


def test_several_or_no_autoencoders_are_refused():
    with pytest.raises(ConversionError, match="several autoencoders, under '', 'vae.'"):
        understand(zeros(TINY) | zeros(TINY, prefix="vae."))
    with pytest.raises(ConversionError, match="not the weights of an autoencoder"):
        understand({"lm_head.weight": np.zeros((2, 2))})
    with pytest.raises(ConversionError, match="stands under 'student.'"):
        understand(zeros(TINY, prefix="student."))


def test_the_difference_from_the_nearest_layout_is_listed():
    tensors = zeros(TINY, "diffusers")
    del tensors["encoder.mid_block.attentions.0.to_q.bias"]
    tensors["encoder.mid_block.attentions.0.extra"] = np.zeros(2)
    with pytest.raises(ConversionError) as caught:
        understand(tensors)
    message = str(caught.value)
    assert "'diffusers' layout" in message
    assert "1 missing, 1 unexpected" in message
    assert "encoder.mid_block.attentions.0.to_q.bias" in message


def test_another_architecture_than_was_said_is_explained():
    with pytest.raises(ConversionError, match="^the shapes speak of another architecture: ch is 32, not 128; "):
        understand(zeros(TINY), PRESETS["flux1"])


def test_a_resolution_never_stops_a_load(tmp_path):
    save_folder(tmp_path / "model", replace(TINY, resolution=1024), zeros(TINY))
    assert load_weights(tmp_path / "model", "tiny").settled
    assert load_weights(tmp_path / "model", replace(TINY, resolution=32)).params.resolution == 1024
    with pytest.raises(ConversionError, match="says downsample_padding is 'asymmetric', not 'symmetric'$"):
        load_weights(tmp_path / "model", replace(TINY, resolution=32, downsample_padding="symmetric"))


def test_what_makes_two_architectures_one_function():
    assert TINY.differences(replace(TINY, resolution=8)) == []
    assert TINY.differences(replace(TINY, scale_factor=2.0, downsample_padding="symmetric")) == [
        *("scale_factor", "downsample_padding"),
    ]
    one_level = replace(TINY, ch_mult=(3,))
    assert one_level.differences(replace(one_level, downsample_padding="symmetric")) == []


def test_presets_that_fit_and_the_nearest():
    assert fitting_presets(untold(PRESETS["flux1"])) == ["flux1", "sd3"]
    assert nearest_preset(replace(PRESETS["flux1"], z_channels=8))[1] == ["z_channels is 8, not 16"]


def test_padding_is_never_guessed(tmp_path):
    write_tensors(tmp_path / "ae.safetensors", zeros(TINY))
    with pytest.raises(
        ConversionError, match=r"says nothing of scale, shift and padding; its tensors fit tiny: .*--preset"
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


def random_tensors(params, layout, dtype):
    rng = np.random.default_rng(0)
    numbers = {row.theirs: rng.standard_normal(row.torch_shape) for row in expand(params, layout)}
    return {key: np.asarray(value).astype(np.int64 if "tracked" in key else dtype) for key, value in numbers.items()}


SMALL = {  # the presets' switches at small widths, so that all pairs of layouts take a moment
    name: replace(params, ch=32, num_res_blocks=1, resolution=256) for name, params in PRESETS.items()
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
    with pytest.raises(ValueError, match="cannot be written in the layout 'diffusers-legacy'"):
        translate(zeros(TINY), TINY, "flux", "diffusers-legacy")
