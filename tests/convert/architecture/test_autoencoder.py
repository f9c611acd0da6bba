"""The architecture record refuses what cannot be a model, and says why."""

import dataclasses

import numpy as np
import pytest

from flax_vae.convert import PRESETS, AutoEncoderParams, preset
from flax_vae.convert.architecture.autoencoder import LATER_FIELDS
from flax_vae.convert.architecture.checks import check_image, check_latent, check_noise, check_time
from flax_vae.convert.architecture.discriminator import DiscriminatorParams

SEED_FIELDS = [
    "resolution",
    "in_channels",
    "ch",
    "out_ch",
    "ch_mult",
    "num_res_blocks",
    "z_channels",
    "scale_factor",
    "shift_factor",
    "time_emb_dim",
]


def test_the_seeds_fields_come_first_and_in_order():
    assert [field.name for field in dataclasses.fields(AutoEncoderParams)][:10] == SEED_FIELDS


def test_the_seeds_own_call_gives_the_seeds_architecture():
    params = AutoEncoderParams(
        resolution=64,
        in_channels=3,
        ch=64,
        out_ch=3,
        ch_mult=[1, 2, 4],
        num_res_blocks=2,
        z_channels=32,
        scale_factor=0.18215,
        shift_factor=0.0,
        time_emb_dim=32,
    )
    assert params == PRESETS["seed"]
    assert all(params.attends(level) for level in range(3))
    assert (params.downsample_padding, params.quant_conv, params.learnable_logvar) == ("symmetric", False, False)
    assert params.clamp_logvar is False
    hash(params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ch": 48}, "48 channels, which GroupNorm cannot split into 32 groups"),
        ({"ch_mult": ()}, "has no level"),
        ({"ch_mult": (1, 0)}, r"ch_mult\[1\]=0 must be a whole number"),
        ({"z_channels": 0}, "z_channels=0 must be a whole number"),
        ({"num_res_blocks": 1.5}, "num_res_blocks=1.5 must be a whole number"),
        ({"in_channels": True}, "in_channels=True must be a whole number"),
        ({"resolution": 30}, "resolution=30 must be a multiple of 4"),
        ({"scale_factor": 0.0}, "would erase every latent"),
        ({"scale_factor": float("nan")}, "scale_factor=nan must be a finite number"),
        ({"scale_factor": 1e-320}, "scale_factor=1e-320 is 0 in float32 and would erase every latent"),
        ({"scale_factor": 10**4000}, "scale_factor=a number of 13288 bits must be a finite number"),
        ({"shift_factor": -1e39}, r"shift_factor=-1e\+39 must be a finite number in float32"),
        ({"shift_factor": "0"}, "shift_factor='0' must be a finite number"),
        ({"scale_factor": True}, "scale_factor=True must be a finite number"),
        ({"decoder_widths": {96, 64}}, "must be a list of whole numbers, or None for those of the encoder"),
        ({"downsample_padding": "SAME"}, "'SAME' must be 'symmetric'"),
        ({"attn_levels": (3,)}, "names level 3, but ch_mult has 3 levels"),
        ({"ch_mult": None}, "ch_mult=None must be a list of whole numbers$"),
        ({"ch_mult": 3}, "ch_mult=3 must be a list of whole numbers$"),
        ({"attn_levels": 1}, "attn_levels=1 must be a list of whole numbers, or None"),
        ({"attn_levels": (0.5,)}, "attn_levels holds 0.5; expected whole numbers"),  # no level, so no attention
        ({"attn_levels": (0, "a", None)}, "attn_levels holds 'a'; expected whole numbers"),
        ({"attn_levels": ([0],)}, r"attn_levels holds \[0\]; expected whole numbers"),
        ({"quant_conv": 1}, "quant_conv=1 must be True or False"),
        ({"clamp_logvar": "yes"}, "clamp_logvar='yes' must be True or False"),
        ({"time_emb_dim": 0}, "time_emb_dim=0 must be at least 1"),
        ({"time_embedding": "sinusoidal"}, "needs a width; set time_emb_dim"),
        ({"time_embedding": "sinusoidal", "time_emb_dim": 7}, "time_emb_dim=7 is odd"),
        ({"latent_norm": "layer"}, "must be 'scale' or 'batch_norm'"),
        ({"latent_norm": "batch_norm", "scale_factor": 0.5}, "replaces scale_factor=0.5"),
        ({"time_embedding": "learned"}, "must be 'linear' or 'sinusoidal'"),
        ({"decoder_widths": 96}, "decoder_widths=96 must be a list of whole numbers, or None for those of the encoder"),
        ({"decoder_widths": (96, 96)}, "decoder_widths has 2 widths; expected one per level, 3"),
        ({"decoder_widths": (96, 96, 100)}, "decoder_widths holds 100; expected multiples of 32"),
        ({"decoder_widths": (96, 96, True)}, "decoder_widths holds True; expected multiples of 32"),
        ({"decoder_widths": (96, 96, 1 << 17)}, "decoder_widths holds 131072; .* up to 65,536"),
        ({"mid_attention": None}, "mid_attention=None must be True or False$"),
        ({"post_quant_conv": 1}, "post_quant_conv=1 must be True or False, or None for that of quant_conv"),
        ({"padding_mode": "circular"}, "padding_mode='circular' must be 'zeros' or 'reflect'"),
        ({"latent_mean": (0.0,) * 16}, "latent_mean and latent_std are given together"),
        (
            {"latent_mean": "0" * 16, "latent_std": (1.0,) * 16},
            "latent_mean='0000000000000000' must be a list of numbers",
        ),
        ({"latent_mean": (0.0,) * 15, "latent_std": (1.0,) * 16}, "latent_mean has 15 numbers; .* the latent, 16"),
        ({"latent_mean": (None,) * 16, "latent_std": (1.0,) * 16}, "latent_mean holds None; expected finite numbers"),
        (
            {"latent_mean": (0.0,) * 16, "latent_std": (0.0,) * 16},
            "latent_std holds 0.0; .* in float32, greater than 0",
        ),
        ({"latent_mean": (0.0,) * 16, "latent_std": (float("inf"),) * 16}, "latent_std holds inf; expected finite"),
        (
            {"latent_mean": (0.0,) * 16, "latent_std": (1.0,) * 16, "shift_factor": 0.5},
            "latent_mean replaces shift_factor=0.5 and latent_norm='scale'; set them to 0 and 'scale'",
        ),
        (
            {"latent_mean": (0.0,) * 16, "latent_std": (1.0,) * 16, "latent_norm": "batch_norm"},
            "latent_mean replaces shift_factor=0.0 and latent_norm='batch_norm'",
        ),
        ({"batch_norm_eps": 1e-5}, "batch_norm_eps=1e-05 has no effect with latent_norm='scale'; leave it out"),
        ({"batch_norm_eps": -1.0, "latent_norm": "batch_norm"}, "batch_norm_eps=-1.0 must be a number from 0 to 1"),
        ({"batch_norm_eps": "1", "latent_norm": "batch_norm"}, "batch_norm_eps='1' must be a number from 0 to 1"),
    ],
)
def test_what_cannot_be_a_model_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PRESETS["tiny"], **change)


def test_unknown_and_missing_fields_are_named():
    fields = PRESETS["tiny"].to_dict()
    with pytest.raises(ValueError, match="unknown architecture field 'z_chanels'; did you mean 'z_channels'"):
        AutoEncoderParams.from_dict({**fields, "z_chanels": 4})
    del fields["ch"], fields["ch_mult"]
    with pytest.raises(ValueError, match="no ch, ch_mult"):
        AutoEncoderParams.from_dict(fields)


def test_an_unknown_preset_is_answered_with_the_nearest():
    assert preset("flux1") is PRESETS["flux1"]
    with pytest.raises(ValueError, match="unknown preset 'flux-1'; did you mean 'flux1'"):
        preset("flux-1")


def test_presets_are_those_of_the_documentation():
    names = "tiny seed seed-flux flux1 flux2 sd1 sdxl sd3 kl-f4 kl-f8 kl-f16 kl-f32"
    assert set(names.split()) <= set(PRESETS)
    for name, factor in [("kl-f4", 4), ("kl-f8", 8), ("kl-f16", 16), ("kl-f32", 32), ("flux1", 8)]:
        assert PRESETS[name].factor == factor
    padding = {name: params.downsample_padding for name, params in PRESETS.items()}
    assert {name for name in padding if padding[name] == "symmetric"} == {"seed", "seed-flux"}
    assert {name for name, params in PRESETS.items() if not params.clamp_logvar} == {"seed", "seed-flux"}


def test_a_stored_architecture_from_before_the_clamp_does_not_clamp():
    fields = PRESETS["flux1"].to_dict()
    assert fields.pop("clamp_logvar") is True
    assert AutoEncoderParams.from_dict(fields) == dataclasses.replace(PRESETS["flux1"], clamp_logvar=False)


CHANGES = {
    "decoder_widths": [32, 96, 64],
    "mid_attention": False,
    "post_quant_conv": True,
    "padding_mode": "reflect",
    "latent_mean": [0.5] * 16,
    "latent_std": [2.0] * 16,
}


def test_later_fields_are_stored_only_where_they_differ():
    fields = PRESETS["tiny"].to_dict()
    assert fields.keys() == {field.name for field in dataclasses.fields(AutoEncoderParams)} - set(LATER_FIELDS)
    assert {*CHANGES, "batch_norm_eps"} == set(LATER_FIELDS)
    changed = dataclasses.replace(PRESETS["tiny"], **CHANGES)
    assert changed.to_dict() == fields | CHANGES
    assert AutoEncoderParams.from_dict(fields | CHANGES) == changed
    hash(changed)
    assert PRESETS["tiny"].differences(changed) == [*CHANGES]
    assert PRESETS["ernie-image"].to_dict() == PRESETS["flux2"].to_dict() | {"batch_norm_eps": 1e-5}


def test_one_model_is_stored_in_one_way():
    params = PRESETS["sd1"]
    assert dataclasses.replace(params, decoder_widths=params.widths) == params
    assert dataclasses.replace(params, post_quant_conv=True) == params
    assert (params.pre_decoder_conv, params.up_widths) == (True, params.widths)
    other = dataclasses.replace(params, quant_conv=False)  # both, unless one is given
    assert not other.pre_decoder_conv
    assert dataclasses.replace(params, post_quant_conv=False).pre_decoder_conv is False


def test_reflection_needs_two_rows_and_columns():
    params = PRESETS["flux1-reflect"]
    assert (params.least_side, params.least_image, PRESETS["flux1"].least_image) == (2, 16, 8)
    patched = dataclasses.replace(PRESETS["flux2"], padding_mode="reflect")
    assert patched.least_image == patched.factor == 16
    check_image(params, batch(1, 16, 16, 3), "b h w c")
    for moments_only in (False, True):
        with pytest.raises(ValueError, match="8 x 24 .* expected multiples of 8 from 16 on; pad them to 16 x 24"):
            check_image(params, batch(1, 8, 24, 3), "b h w c", moments_only=moments_only)
    with pytest.raises(
        ValueError, match="latents are 1 x 3 .* expected at least 2 x 2, because padding_mode='reflect'"
    ):
        check_latent(16, batch(1, 1, 3, 16), "b h w c", least=params.least_side)


def batch(*shape, dtype="float32"):
    return np.empty(shape, dtype)


def test_sizes_are_checked_with_the_remedy():
    params = PRESETS["flux1"]
    check_image(params, batch(2, 16, 24, 3), "b h w c")
    check_image(params, batch(2, 3, 16, 24), "b c h w")
    with pytest.raises(ValueError, match="20 x 24 .* multiples of 8; pad them to 24 x 24"):
        check_image(params, batch(2, 20, 24, 3), "b h w c")
    with pytest.raises(ValueError, match="have 24 channels as 'b h w c'; expected 3"):
        check_image(params, batch(2, 3, 16, 24), "b h w c")
    with pytest.raises(ValueError, match="expected 'b h w c'; pass all 4 axes"):
        check_image(params, batch(16, 16, 3), "b h w c")
    with pytest.raises(ValueError, match="positive multiples of 8"):
        check_image(params, batch(2, 0, 8, 3), "b h w c")
    with pytest.raises(ValueError, match="have 4 channels as 'b h w c'; expected 16"):
        check_latent(params.latent_channels, batch(2, 5, 5, 4), "b h w c")


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "complex64", "float8_e4m3fn"])
def test_integers_are_refused_with_the_remedy(dtype):
    params = dataclasses.replace(PRESETS["seed"], time_embedding="sinusoidal")
    kinds = "expected float64, float32, float16, bfloat16"
    with pytest.raises(ValueError, match=f"^images are {dtype}; {kinds}; .*images / 127.5 - 1$"):
        check_image(params, batch(2, 8, 8, 3, dtype=dtype), "b h w c")
    with pytest.raises(ValueError, match=f"^images are {dtype}; {kinds}; .*images / 127.5 - 1$"):
        DiscriminatorParams().check_images(batch(2, 32, 32, 3, dtype=dtype), "b h w c")
    with pytest.raises(ValueError, match=f"^latents are {dtype}; {kinds}; .* cast them to float32$"):
        check_latent(32, batch(2, 8, 8, 32, dtype=dtype), "b h w c")
    with pytest.raises(ValueError, match=f"^times are {dtype}; {kinds}; cast them to float32$"):
        check_time(params, batch(2, dtype=dtype), 2)


def test_empty_batches_are_refused():
    with pytest.raises(ValueError, match=r"^images have shape \(0, 8, 8, 3\); expected a batch of at least one; skip"):
        check_image(PRESETS["flux1"], batch(0, 8, 8, 3), "b h w c")
    with pytest.raises(
        ValueError, match=r"^images have shape \(0, 32, 32, 3\); expected a batch of at least one; skip"
    ):
        DiscriminatorParams().check_images(batch(0, 32, 32, 3), "b h w c")
    with pytest.raises(
        ValueError, match=r"^latents have shape \(0, 8, 8, 16\); expected a batch of at least one; skip"
    ):
        check_latent(16, batch(0, 8, 8, 16), "b h w c")


def test_time_is_checked():
    seed, sinusoidal = PRESETS["seed"], dataclasses.replace(PRESETS["seed"], time_embedding="sinusoidal")
    check_time(seed, batch(2, 32), 2)
    check_time(sinusoidal, batch(2), 2)
    check_time(PRESETS["flux1"], None, 2)
    for params, time, message in [
        (seed, None, r"pass time of shape \(2, 32\)"),
        (seed, batch(2), r"expects \(2, 32\)"),
        (seed, batch(3, 32), r"expects \(2, 32\)"),
        (sinusoidal, batch(2, 32), r"expects \(2,\)"),
        (PRESETS["flux1"], batch(2, 32), "has no time embedding"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_time(params, time, 2)


def test_noise_is_checked():
    check_noise(None, sample=False, latent=(1, 2))
    with pytest.raises(ValueError, match="sample=False does not sample"):
        check_noise((1, 2), sample=False, latent=(1, 2))
    with pytest.raises(ValueError, match="must be equal"):
        check_noise((1,), sample=True, latent=(1, 2))
