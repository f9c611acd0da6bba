import inspect
import json
import math
import warnings
from dataclasses import replace
from types import ModuleType

import pytest

from flax_vae.convert import PRESETS, expand
from flax_vae.convert.architecture.autoencoder import AutoEncoderParams
from flax_vae.convert.errors import ConversionError, FileError
from flax_vae.convert.weights.diffusers_config import (
    DEFAULTS,
    FLAX,
    FLUX2,
    KL,
    is_diffusers_config,
    kept_keys,
    read_diffusers_config,
    read_diffusers_file,
    write_diffusers_config,
    write_flax_config,
)

# The published files, with the keys of their time: stabilityai/sd-vae-ft-mse, stabilityai/sdxl-vae, FLUX.1's vae/.
SD1 = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.4.2",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SDXL = SD1 | {"_name_or_path": "../sdxl-vae/", "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
FLUX1 = SDXL | {
    **{"latent_channels": 16, "latents_mean": None, "latents_std": None, "mid_block_add_attention": True},
    **{"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_post_quant_conv": False, "use_quant_conv": False},
}

# What diffusers can express: the presets of FLUX and Stable Diffusion, and attention at every level or at some.
_SMALL = replace(PRESETS["flux1"], ch=32, ch_mult=(1, 2, 2), num_res_blocks=1)
EXPRESSIBLE = {name: PRESETS[name] for name in ("flux1", "sd1", "sdxl", "sd3", "kl-f4", "kl-f8", "kl-f16", "kl-f32")}
EXPRESSIBLE["flux2"] = PRESETS["flux2"]
EXPRESSIBLE["small"] = _SMALL
EXPRESSIBLE["small flux2"] = replace(
    _SMALL, latent_norm="batch_norm", quant_conv=True, scale_factor=1.0, shift_factor=0.0
)
EXPRESSIBLE["every level"] = replace(_SMALL, attn_levels=(0, 1, 2))
EXPRESSIBLE["one level"] = replace(_SMALL, attn_levels=(1,), ch_mult=(1, 2, 4), num_res_blocks=2)
EXPRESSIBLE["small decoder"] = replace(
    EXPRESSIBLE["small flux2"], decoder_widths=(96, 32, 64), batch_norm_eps=1e-5, post_quant_conv=False
)
EXPRESSIBLE["no attention"] = replace(_SMALL, mid_attention=False, post_quant_conv=True)
EXPRESSIBLE |= {name: PRESETS[name] for name in ("flux2-small-decoder", "ernie-image", "glm-image", "playground-v2.5")}
SMALL = ("small", "small flux2", "every level", "one level", "small decoder", "no attention")


def build(diffusers: ModuleType, params: AutoEncoderParams):
    fields = write_diffusers_config(params)
    return getattr(diffusers, fields["_class_name"]).from_config(fields)


@pytest.fixture(scope="module")
def diffusers() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies, while they are imported
        return pytest.importorskip("diffusers")


@pytest.mark.parametrize(
    ("fields", "preset", "resolution"), [(SD1, "sd1", 256), (SDXL, "sdxl", 1024), (FLUX1, "flux1", 1024)]
)
def test_published_configurations_are_the_presets(fields, preset, resolution):
    assert is_diffusers_config(fields)
    assert read_diffusers_config(fields) == replace(PRESETS[preset], resolution=resolution)


def test_flux2_normalises_its_latents_with_statistics():
    fields = FLUX1 | {"_class_name": FLUX2, "latent_channels": 32, "use_post_quant_conv": True, "use_quant_conv": True}
    for key in ("force_upcast", "latents_mean", "latents_std", "scaling_factor", "shift_factor"):
        del fields[key]
    fields |= {"batch_norm_eps": 0.0001, "batch_norm_momentum": 0.1, "patch_size": [2, 2]}
    assert read_diffusers_config(fields) == replace(PRESETS["flux2"], resolution=1024)
    published = {"force_upcast": True, "scaling_factor": 1.0, "shift_factor": None, "latents_mean": None}
    assert read_diffusers_config(fields | published) == read_diffusers_config(fields)
    assert kept_keys(fields | published)["force_upcast"] is True
    for key, value in (("scaling_factor", 0.3611), ("shift_factor", 0.1159), ("latents_mean", [0.1] * 32)):
        with pytest.raises(ConversionError, match=f"unknown keys, which may change what .*: {key}="):
            read_diffusers_config(fields | {key: value})
    for change, preset in (
        ({"batch_norm_eps": 1e-5}, "ernie-image"),
        ({"decoder_block_out_channels": [96, 192, 384, 384]}, "flux2-small-decoder"),
        ({"decoder_block_out_channels": [128, 256, 512, 512]}, "flux2"),
    ):
        assert read_diffusers_config(fields | change) == replace(PRESETS[preset], resolution=1024)
    for change, complaint in (
        ({"patch_size": [1, 1]}, "patch_size"),
        ({"decoder_block_out_channels": [96, 192, 384]}, "decoder_widths has 3 widths; expected one per level, 4"),
        ({"decoder_block_out_channels": [96, 192, 384, "x"]}, "decoder_block_out_channels=.* must be a list of whole"),
        ({"decoder_block_out_channels": [100, 192, 384, 384]}, "decoder_widths holds 100; expected multiples of 32"),
        ({"batch_norm_eps": "1e-5"}, "batch_norm_eps='1e-5' must be a number"),
    ):
        with pytest.raises(ConversionError, match=complaint):
            read_diffusers_config(fields | change)


def test_statistics_per_channel_mean_what_their_pipelines_compute():
    mean, std = list(PRESETS["playground-v2.5"].latent_mean), list(PRESETS["playground-v2.5"].latent_std)
    fields = SDXL | {"scaling_factor": 0.5, "latents_mean": mean, "latents_std": std}
    assert read_diffusers_config(fields) == replace(PRESETS["playground-v2.5"], resolution=1024)
    glm = PRESETS["glm-image"]
    fields = SDXL | {
        **{"block_out_channels": [128, 512, 1024, 1024], "layers_per_block": 3, "mid_block_add_attention": False},
        **{"latent_channels": 16, "scaling_factor": 0.18215, "shift_factor": None},  # the class's default, not used
        **{"latents_mean": list(glm.latent_mean), "latents_std": list(glm.latent_std)},
        **{"use_post_quant_conv": False, "use_quant_conv": False},
    }
    assert read_diffusers_config(fields) == replace(glm, resolution=1024)
    # GLM-Image's and REPA-E's pipelines read neither scaling nor shift beside statistics.
    fields = FLUX1 | {"latents_mean": mean * 4, "latents_std": std * 4}
    expected = replace(PRESETS["flux1"], scale_factor=1.0, shift_factor=0.0, resolution=1024)
    expected = replace(expected, latent_mean=mean * 4, latent_std=std * 4)
    assert read_diffusers_config(fields) == expected
    assert kept_keys(fields).items() >= {"scaling_factor": 0.3611, "shift_factor": 0.1159}.items()
    back = write_diffusers_config(expected) | kept_keys(fields)
    assert read_diffusers_config(back) == expected
    assert {key for key, value in fields.items() if back.get(key) != value} == {"_diffusers_version", "_name_or_path"}


def test_the_former_flax_models_are_read_too():
    assert read_diffusers_config(SD1 | {"_class_name": FLAX}) == PRESETS["sd1"]


def test_the_former_flax_models_are_written_too():
    expected = {key: value for key, value in SDXL.items() if key not in ("_name_or_path", "force_upcast")}
    expected |= {"_class_name": FLAX, "_diffusers_version": "0.39.0"}
    assert write_flax_config(PRESETS["sdxl"], kept_keys(SDXL)) == expected
    with pytest.raises(ConversionError, match="Flax class cannot express the latents of AutoencoderKLFlux2; use the"):
        write_flax_config(PRESETS["flux2"])
    shifted = replace(PRESETS["sdxl"], shift_factor=0.5)
    assert read_diffusers_config(write_flax_config(shifted)) == shifted


@pytest.mark.parametrize("params", EXPRESSIBLE.values(), ids=EXPRESSIBLE)
def test_architectures_return(params):
    fields = json.loads(json.dumps(write_diffusers_config(params), allow_nan=False))
    assert read_diffusers_config(fields) == params


@pytest.mark.torch
@pytest.mark.parametrize("params", EXPRESSIBLE.values(), ids=EXPRESSIBLE)
def test_diffusers_builds_the_same_architecture(diffusers, params):
    import torch

    with torch.device("meta"):
        model = build(diffusers, params)
    rows = expand(params)
    state_dict = model.state_dict()
    assert len(state_dict) == len(rows)
    if params.latent_norm == "batch_norm":  # what pipelines divide by
        assert model.bn.eps == params.batch_norm_eps and len(model.bn.running_var) == params.latent_channels
    assert sum(t.numel() for t in state_dict.values()) == sum(math.prod(row.shape) for row in rows)
    assert read_diffusers_config(dict(model.config)) == params  # tuples and its own keys included
    for half in (model.encoder, model.decoder):
        assert [attention is not None for attention in half.mid_block.attentions] == [params.mid_attention]
    for side, blocks, widths in (
        ("encoder", model.encoder.down_blocks, params.widths),
        ("decoder", list(model.decoder.up_blocks)[::-1], params.up_widths),
    ):
        for level, block in enumerate(blocks):
            attentions = getattr(block, "attentions", [])
            assert len(attentions) == (len(block.resnets) if params.attends(level) else 0), (side, level)
            for attention in attentions:  # one head of all channels, after a norm like ours
                assert attention.heads == 1 and attention.group_norm.eps == 1e-6
                assert attention.group_norm.num_groups == 32 and attention.residual_connection
                assert attention.rescale_output_factor == 1 and attention.scale == widths[level] ** -0.5
            for resnet in block.resnets:
                assert resnet.norm1.eps == 1e-6 and resnet.norm1.num_groups == 32 and resnet.output_scale_factor == 1
            for downsampler in getattr(block, "downsamplers", None) or ():
                assert downsampler.padding == 0  # which diffusers turns into (0, 1, 0, 1)


@pytest.mark.torch
@pytest.mark.parametrize("name", SMALL)
def test_diffusers_folders_are_read_and_written(diffusers, tmp_path, name):
    params = EXPRESSIBLE[name]
    model = build(diffusers, params)
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert read_diffusers_file(tmp_path / "config.json") == params
    assert {key: value for key, value in write_diffusers_config(params).items() if fields[key] != value} == {}
    (tmp_path / "config.json").write_text(json.dumps(write_diffusers_config(params)))
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert dict(loaded.config) | {"_name_or_path": None} == dict(model.config) | {"_name_or_path": None}


@pytest.mark.torch
@pytest.mark.parametrize("name", [KL, FLUX2])
def test_every_key_of_diffusers_is_known_with_its_default(diffusers, name):
    signature = inspect.signature(getattr(diffusers, name).__init__)
    expected = {key: p.default for key, p in signature.parameters.items() if key not in ("self", "kwargs")}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in expected.items()} == DEFAULTS[name]


def test_absent_keys_mean_what_diffusers_takes_for_them():
    expected = AutoEncoderParams(
        resolution=32,
        in_channels=3,
        ch=64,
        out_ch=3,
        ch_mult=(1,),
        num_res_blocks=1,
        z_channels=4,
        scale_factor=0.18215,
        shift_factor=0.0,
        attn_levels=(),
        downsample_padding="asymmetric",
        quant_conv=True,
        clamp_logvar=True,
    )
    assert read_diffusers_config({"_class_name": KL}) == expected


def test_attention_is_placed_by_level_on_both_sides():
    fields = SD1 | {
        "down_block_types": [
            "DownEncoderBlock2D",
            "AttnDownEncoderBlock2D",
            "DownEncoderBlock2D",
            "DownEncoderBlock2D",
        ],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    }
    assert read_diffusers_config(fields).attn_levels == (1,)
    with pytest.raises(ConversionError, match=r"the encoder has attention at levels \(1,\), the decoder at \(2,\)"):
        read_diffusers_config(fields | {"up_block_types": fields["up_block_types"][::-1]})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"_class_name": "AutoencoderDC"}, "_class_name is 'AutoencoderDC'; expected one of AutoencoderKL, "),
        ({"_class_name": ["AutoencoderKL"]}, "_class_name is "),
        ({"act_fn": "gelu"}, "act_fn='gelu' is not supported; expected 'silu'"),
        ({"norm_num_groups": 16}, "norm_num_groups=16 is not supported"),
        ({"mid_block_add_attention": 1}, "mid_attention=1 must be True or False"),
        ({"latents_mean": [0.1] * 4}, "latents_mean=.* and latents_std=None: expected both or neither"),
        ({"latents_std": [1.1] * 4}, "latents_mean=None and latents_std=.*: expected both or neither"),
        ({"latents_mean": [0.1] * 3, "latents_std": [1.0] * 4}, "latent_mean has 3 numbers; expected one per channel"),
        ({"latents_mean": [0.1] * 4, "latents_std": [0.0] * 4}, "latent_std holds 0.0; expected finite numbers"),
        ({"latents_mean": 0.1, "latents_std": 1.0}, "latent_mean=0.1 must be a list of numbers"),
        ({"attention_head_dim": 8}, "unknown keys, which may change what the model computes: attention_head_dim=8"),
        ({"decoder_block_out_channels": [96, 192, 384, 384]}, "unknown keys.*: decoder_block_out_channels"),
        ({"padding_mode": "reflect"}, "unknown keys.*: padding_mode='reflect'"),
        ({"use_quant_conv": "no", "use_post_quant_conv": "no"}, "quant_conv='no' must be True or False"),
        ({"scaling_facto": 1.0}, "unknown keys.*scaling_facto=1.0 .did you mean 'scaling_factor'"),
        ({"quantization_config": {}}, "unknown keys, which may change what the model computes: quantization_config"),
        ({"_use_default_values": "act_fn"}, "_use_default_values='act_fn' must be a list of keys"),
        ({"patch_size": [2, 2]}, "unknown keys"),
        ({"decoder_block_out_channels": [96, 192, 384, 384]}, "unknown keys"),
        ({"down_block_types": ["DownEncoderBlock2D"] * 3}, "must name one block for each of 4 levels"),
        ({"down_block_types": "DownEncoderBlock2D"}, "must name one block for each of 4 levels"),
        ({"down_block_types": ["DownBlock2D"] * 4}, "down_block_types has 'DownBlock2D'; expected DownEncoderBlock2D"),
        ({"up_block_types": [["x"]] * 4}, "up_block_types has"),
        ({"block_out_channels": [128, 192, 512, 512]}, "must be whole multiples of the first, 128"),
        ({"block_out_channels": []}, "must be a list of whole numbers"),
        ({"block_out_channels": 128}, "must be a list of whole numbers"),
        ({"block_out_channels": [0, 1, 2, 3]}, "must be a list of whole numbers"),
        ({"block_out_channels": [33, 33, 33, 33]}, "make ch a multiple of 32"),
        ({"layers_per_block": 0}, "num_res_blocks=0"),
        ({"latent_channels": "4"}, "z_channels='4'"),
        ({"scaling_factor": None}, "scale_factor=None"),
        ({"shift_factor": "x"}, "shift_factor='x'"),
        ({"sample_size": [[1]]}, r"sample_size=\[\[1\]\] must be a number of pixels, or two of them"),
        ({"sample_size": "256"}, "sample_size='256' must be a number of pixels"),
        ({"sample_size": []}, r"sample_size=\[\] must be a number of pixels"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_expressed_is_refused_by_name(tmp_path, change, complaint):
    with pytest.raises(ConversionError, match=complaint):
        read_diffusers_config(SD1 | change)
    (tmp_path / "config.json").write_text(json.dumps(SD1 | change))
    with pytest.raises(ConversionError, match=f"config.json: .*{complaint}"):
        read_diffusers_file(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("change", "resolution"),
    [
        ({"act_fn": "swish"}, 256),  # the other name of silu
        ({"act_fn": "SiLU"}, 256),
        ({"sample_size": [256, 256]}, 256),
        ({"sample_size": [256, 512]}, 512),
        ({"sample_size": 33}, 40),
        ({"force_upcast": False, "_anything_private": [1]}, 256),
        ({"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 1, "power": 2 / 3}, 256),
        ({"update_after_step": 0, "use_ema_warmup": False}, 256),
        ({"decoder_block_out_channels": None, "torch_dtype": "float16", "transformers_version": "5.0"}, 256),
        ({"act_fn": "relu", "_use_default_values": ["act_fn"]}, 256),  # diffusers takes its default for such a key
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_changes_no_output_never_stops_a_load(change, resolution):
    assert read_diffusers_config(SD1 | change) == replace(PRESETS["sd1"], resolution=resolution)


def test_what_the_architecture_does_not_hold_returns_to_diffusers():
    fields = SD1 | {
        "act_fn": "swish",
        "force_upcast": False,
        "sample_size": [33, 64],
        "_name_or_path": "x",
        "decay": 0.9,
    }
    assert kept_keys(fields) == {"act_fn": "swish", "force_upcast": False, "sample_size": [33, 64]}
    assert kept_keys(fields | {"_use_default_values": ["sample_size", "act_fn"]}) == {"force_upcast": False}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"time_emb_dim": 8}, r"its autoencoders are not conditioned on time \(time_emb_dim=8\)"),
        ({"learnable_logvar": True}, "its autoencoders have no learnable_logvar"),
        ({"downsample_padding": "symmetric"}, "its autoencoders pad asymmetrically only"),
        ({"padding_mode": "reflect"}, r"its autoencoders pad with zeros \(padding_mode='reflect'\)"),
        (
            {"decoder_widths": (32, 96, 96)},
            r"have a decoder as wide as the encoder, but for FLUX.2's \(decoder_widths=",
        ),
        (
            {"latent_mean": (0.0,) * 16, "latent_std": (2.0,) * 16, "shift_factor": 0.0},
            r"take statistics per channel in place of a scale \(scale_factor=0.3611; divide each of latent_std by it",
        ),
        ({"ch_mult": (2, 2, 4)}, r"start at the width of their first level \(ch_mult=\(2, 2, 4\)\)"),
    ],
)
def test_what_diffusers_cannot_express_is_refused_with_a_sentence(change, complaint):
    with pytest.raises(ConversionError, match=f"diffusers cannot express this architecture: {complaint}|{complaint}"):
        write_diffusers_config(replace(_SMALL, **change))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1, "a": 2}', b"\xff"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FileError, match="config.json is not a configuration of diffusers: "):
        read_diffusers_file(tmp_path / "config.json")
