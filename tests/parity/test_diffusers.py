"""Hugging Face's own autoencoders as the judge: their files give the same latents and images here, ours there.

Their models are built from the published configurations as diffusers writes them, not from our records.
"""

import copy
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import serialization
from safetensors.torch import save_file

import flax_vae
import torch_ref
from flax_vae.convert import AutoEncoderParams, ConversionError, expand, to_flax
from flax_vae.convert.table.rows import unflatten
from flax_vae.convert.weights.load import load_weights
from flax_vae.convert.weights.save import save_weights
from tests.flax_vae.random_models import quick_jit
from tests.parity.agree import assert_agree, assert_trees_agree, difference, nchw, nhwc

diffusers = pytest.importorskip("diffusers")

# Largest difference from what diffusers computes in float64, of the output's RMS: in float32 all of it is our rounding.
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}

_SHARED = {"act_fn": "silu", "norm_num_groups": 32, "in_channels": 3, "out_channels": 3, "sample_size": 512}
_LARGE = _SHARED | {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
}
_SMALL = _SHARED | {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 2,
}
_BRIEF = _SHARED | {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [32, 64],
}
_NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
_FLUX1 = {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, **_NO_QUANT}
_SDXL = {"latent_channels": 4, "scaling_factor": 0.13025}


_PLAYGROUND = {
    "scaling_factor": 0.5,
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
}
_COGVIEW4 = {"latent_channels": 16, "scaling_factor": 1.0, "shift_factor": 0.0, "mid_block_add_attention": False}
# Made up, because the values of these files were not at hand; theirs have as many.
_STATISTICS = {
    channels: {
        "latents_mean": np.linspace(-2, 2, channels).round(4).tolist(),
        "latents_std": np.geomspace(0.3, 5, channels).round(4).tolist(),
    }
    for channels in (16, 32)
}


@dataclass(frozen=True)
class Model:
    """A model of theirs: its configuration, its class, the size of a picture for it.

    `reflect` sets the padding of every convolution after the model is made, as users do: no configuration holds it.
    A `brief` one is judged in float64 only, with its gradients.
    """

    config: dict[str, Any]
    cls: str = "AutoencoderKL"
    size: tuple[int, int] = (32, 48)
    marks: tuple = field(default=())
    reflect: bool = False
    brief: bool = False


MODELS = {
    "sd1": Model(_SMALL | {"latent_channels": 4, "scaling_factor": 0.18215}),
    "sdxl": Model(_SMALL | _SDXL),
    "sd3": Model(_SMALL | _NO_QUANT | {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
    "flux1": Model(_SMALL | _FLUX1),
    "flux2": Model(_SMALL | {"latent_channels": 32}, "AutoencoderKLFlux2"),
    "attention at every level": Model(
        _SMALL
        | {
            "down_block_types": ["AttnDownEncoderBlock2D"] * 3,
            "up_block_types": ["AttnUpDecoderBlock2D"] * 3,
            "latent_channels": 4,
        },
        size=(16, 24),
    ),
    "flux2, small decoder": Model(
        _BRIEF | {"layers_per_block": 1, "latent_channels": 4, "decoder_block_out_channels": [96, 32]},
        "AutoencoderKLFlux2",
        (8, 12),
        brief=True,
    ),
    "ernie-image": Model(
        _BRIEF | {"layers_per_block": 1, "latent_channels": 4, "batch_norm_eps": 1e-5},
        "AutoencoderKLFlux2",
        (8, 12),
        brief=True,
    ),
    "cogview4": Model(_BRIEF | _NO_QUANT | _COGVIEW4 | {"block_out_channels": [32, 128]}, size=(6, 10), brief=True),
    "glm-image": Model(_BRIEF | _NO_QUANT | _COGVIEW4 | _STATISTICS[16], size=(6, 10), brief=True),
    "playground-v2.5": Model(_BRIEF | {"latent_channels": 4} | _PLAYGROUND, size=(6, 10), brief=True),
    "repa-e, va-vae": Model(
        _BRIEF
        | {"latent_channels": 32, "scaling_factor": 0.3611, "shift_factor": 0.1159}
        | {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}
        | {"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]}
        | _STATISTICS[32],
        size=(6, 10),
        brief=True,
    ),
    "reflect padding": Model(_BRIEF | _SDXL, size=(6, 10), brief=True, reflect=True),
    "quant convolution only": Model(_BRIEF | {"use_post_quant_conv": False}, size=(4, 6), brief=True),
    "post-quant convolution only": Model(_BRIEF | {"use_quant_conv": False}, size=(4, 6), brief=True),
    "flux2's small decoder as published": Model(
        _LARGE | {"latent_channels": 32, "decoder_block_out_channels": [96, 192, 384, 384]},
        "AutoencoderKLFlux2",
        (16, 32),
        marks=(pytest.mark.slow,),
    ),
    "flux1 as published": Model(_LARGE | _FLUX1, marks=(pytest.mark.slow,)),
    "sdxl as published": Model(_LARGE | _SDXL, marks=(pytest.mark.slow,)),
}
EACH = [pytest.param(model, id=name, marks=model.marks) for name, model in MODELS.items() if not model.brief]


def make(model: Model, seed: int = 0) -> torch.nn.Module:
    """A model of theirs in which every number is random, or a lost one would not be seen."""
    torch.manual_seed(seed)
    theirs = reflect(getattr(diffusers, model.cls)(**model.config).eval(), model)
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if tensor.ndim > 1:  # so that signals keep their size, as in a trained model: rounding is relative to it
                tensor.normal_(0, tensor[0].numel() ** -0.5)
            elif name == "bn.running_var":
                tensor.uniform_(0.3, 2)
            elif name == "bn.num_batches_tracked":
                tensor.fill_(7)
            elif tensor.ndim == 1:
                tensor.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return theirs


def reflect(theirs: torch.nn.Module, model: Model) -> torch.nn.Module:
    """The model with the padding that its users set: every convolution that pads by itself reflects."""
    for module in theirs.modules() if model.reflect else ():
        if isinstance(module, torch.nn.Conv2d) and max(module.padding):
            module.padding_mode = "reflect"
    return theirs


def architecture(folder: Path, model: Model) -> AutoEncoderParams | None:
    """What a user names beside a file of theirs; None where its configuration says everything."""
    return replace(load_weights(folder).params, padding_mode="reflect") if model.reflect else None


def pictures(model: Model) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, *model.size, 3)).astype(np.float32)


@torch.no_grad()
def ask_diffusers(theirs, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scaled latents and the images of them, with what their pipelines do between the model and the latents.

    In float64, whatever the precision of the images: against its float32, half of a difference would be theirs.
    """
    theirs = copy.deepcopy(theirs).double()
    as_given = lambda latents: latents.to(torch.from_numpy(images).dtype).double()  # noqa: E731 - decoded by all alike
    z = theirs.encode(nchw(images).double()).latent_dist.mode()
    if isinstance(theirs, diffusers.AutoencoderKLFlux2):  # pipeline_flux2.py: _encode_vae_image, _unpatchify_latents
        b, c, h, w = z.shape
        mean = theirs.bn.running_mean.view(1, -1, 1, 1)
        std = torch.sqrt(theirs.bn.running_var.view(1, -1, 1, 1) + theirs.config.batch_norm_eps)
        patches = z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)
        latents = as_given((patches - mean) / std)
        back = (latents * std + mean).reshape(b, c, 2, 2, h // 2, w // 2).permute(0, 1, 4, 2, 5, 3).reshape(b, c, h, w)
    elif theirs.config.latents_mean is not None:
        mean, std = (
            torch.tensor(theirs.config[key], dtype=torch.float64).view(1, -1, 1, 1)
            for key in ("latents_mean", "latents_std")
        )
        # pipeline_stable_diffusion_xl_img2img.py takes the scale too; pipeline_glm_image.py and REPA-E's do not.
        scale = theirs.config.scaling_factor if theirs.config.latent_channels == 4 else 1.0
        latents = as_given((z - mean) * scale / std)
        back = latents * std / scale + mean
    else:
        shift = theirs.config.shift_factor or 0.0
        latents = as_given((z - shift) * theirs.config.scaling_factor)
        back = latents / theirs.config.scaling_factor + shift
    return nhwc(latents), nhwc(theirs.decode(back).sample)


def ask_flax(path: Path, images: np.ndarray, latents: np.ndarray, preset: AutoEncoderParams | None = None):
    """Our latents of the images, and our images of their latents: each half by itself."""
    model, params = flax_vae.from_pretrained(path, preset)

    @jax.jit
    def both(params, images, latents):
        encoded = model.apply({"params": params}, images, sample=False, method="encode")
        return encoded, model.apply({"params": params}, latents, method="decode")

    with jax.default_matmul_precision("highest"):
        return both(params, images, latents)


@torch.no_grad()
def ask_torch(path: Path, images: np.ndarray, latents: np.ndarray, preset: AutoEncoderParams | None = None):
    model = torch_ref.from_pretrained(path, preset)
    return nhwc(model.encode(nchw(images), sample=False)), nhwc(model.decode(nchw(latents)))


def assert_loads(path: Path, images: np.ndarray, expected, params: AutoEncoderParams | None = None) -> None:
    """Both frameworks load the file and compute what diffusers does."""
    for ask in (ask_flax, ask_torch):
        found = ask(path, images, expected[0].astype(images.dtype), params)
        for what, ours, theirs in zip(("latents", "images"), found, expected, strict=True):
            assert ours.dtype == images.dtype or ask is ask_torch
            assert_agree(ours, theirs, TOLERANCE[images.dtype.name], f"{what} of {ask.__name__}")


def load_strictly(folder: Path, cls: str) -> torch.nn.Module:
    """As users do, with everything that diffusers would only have warned of."""
    theirs, info = getattr(diffusers, cls).from_pretrained(folder, output_loading_info=True)
    assert {what: list(names) for what, names in info.items() if names} == {}
    return theirs.eval()


def same_bits(ours, theirs) -> bool:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[key]) and tensor.dtype == theirs[key].dtype for key, tensor in ours.items()
    )


@pytest.mark.parametrize("model", EACH)
def test_theirs_is_ours_and_ours_is_theirs(tmp_path, optimised, model):
    theirs, images = make(model), pictures(model)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = ask_diffusers(theirs, images)
    params = architecture(tmp_path / "theirs", model)
    assert_loads(tmp_path / "theirs", images, expected, params)
    assert_returns(tmp_path, model, theirs, images, expected)


def assert_returns(folder: Path, model: Model, theirs: torch.nn.Module, images: np.ndarray, expected) -> None:
    """Their folder `theirs`, through our own names and Flax's tree, is theirs again, bit for bit."""
    params = architecture(folder / "theirs", model)
    flax_vae.save_pretrained(folder / "ours", *flax_vae.from_pretrained(folder / "theirs", params))
    ours = load_weights(folder / "ours")
    if model.reflect:
        with pytest.raises(ConversionError, match="its autoencoders pad with zeros"):
            save_weights(folder / "back", ours, "diffusers")
        ours = replace(ours, params=replace(ours.params, padding_mode="zeros"))
    save_weights(folder / "back", ours, "diffusers")
    back = reflect(load_strictly(folder / "back", model.cls), model).to(dtype=theirs.dtype)
    lost = {"bn.num_batches_tracked"} if model.cls == "AutoencoderKLFlux2" else set()  # not in a Flax tree
    for key, tensor in theirs.state_dict().items():
        assert key in lost or torch.equal(tensor, back.state_dict()[key]), key
    for ours, there in zip(ask_diffusers(back, images), expected, strict=True):
        np.testing.assert_array_equal(ours, there)
    # What says how the weights are used survives too.
    how_used = {
        "scaling_factor",
        "shift_factor",
        "latents_mean",
        "latents_std",
        "batch_norm_eps",
        "use_post_quant_conv",
    }
    if model.config.get("latents_std") and model.config["latent_channels"] != 4:
        how_used -= {"scaling_factor", "shift_factor"}  # which no pipeline reads there
    for key in (*how_used, "latent_channels", "block_out_channels", "use_quant_conv", "mid_block_add_attention"):
        assert (back.config.get(key) or 0) == (theirs.config.get(key) or 0), key


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if not (model.brief or model.marks)])
def test_in_double_precision_nothing_is_left_but_rounding(tmp_path, name):
    theirs, images = make(MODELS[name]).double(), pictures(MODELS[name]).astype(np.float64)
    theirs.save_pretrained(tmp_path)
    assert_loads(tmp_path, images, ask_diffusers(theirs, images), architecture(tmp_path, MODELS[name]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.brief])
def test_values_weights_and_gradients_are_theirs_in_double_precision(tmp_path, name):
    model = MODELS[name]
    theirs, images = make(model).double(), pictures(model).astype(np.float64)
    theirs.save_pretrained(tmp_path / "theirs")
    latents, decoded = ask_diffusers(theirs, images)
    assert_returns(tmp_path, model, theirs, images, (latents, decoded))

    ours, tree = flax_vae.from_pretrained(tmp_path / "theirs", architecture(tmp_path / "theirs", model))
    raw = np.asarray(ours.apply({"params": tree}, latents, method="unscale"))
    rng = np.random.default_rng(1)
    by_mean, by_logvar, by_image = (rng.standard_normal(shape) for shape in (raw.shape, raw.shape, images.shape))

    @quick_jit
    def values_and_gradients(tree):
        def loss(model):
            posterior, image = model.posterior(images), model.decode(latents)
            value = (posterior.mean * by_mean).sum() + (posterior.logvar * by_logvar).sum() + (image * by_image).sum()
            return value, (model.scale(posterior.mode()), image)

        return jax.grad(lambda tree: ours.apply({"params": tree}, method=loss), has_aux=True)(tree)

    gradients, (our_latents, our_images) = values_and_gradients(tree)
    posterior, image = theirs.encode(nchw(images)).latent_dist, theirs.decode(nchw(raw)).sample
    pairs = ((posterior.mean, by_mean), (posterior.logvar, by_logvar), (image, by_image))
    sum((value * nchw(weight)).sum() for value, weight in pairs).backward()
    found = {key: tensor.grad.numpy() for key, tensor in theirs.named_parameters()}
    found |= {key: np.zeros(tuple(tensor.shape)) for key, tensor in theirs.named_buffers()}  # of the batch norm
    assert_agree(our_latents, latents, TOLERANCE["float64"], "latents")
    assert_agree(our_images, decoded, TOLERANCE["float64"], "images")
    assert_trees_agree(gradients, to_flax(found, ours.params, "diffusers"), TOLERANCE["float64"])

    if model.reflect:  # without the preset the latents are others, and no error says so
        assert difference(ask_torch(tmp_path / "theirs", images, latents)[0], latents) > 1e-3
    twin = ask_torch(tmp_path / "theirs", images, latents, ours.params)
    for what, there, expected in zip(("latents", "images"), twin, (latents, decoded), strict=True):
        assert_agree(there, expected, TOLERANCE["float64"], f"{what} of the twin")


@pytest.mark.parametrize("name", ["sdxl", "flux2"])
def test_without_flax_between_even_the_counter_survives(tmp_path, name):
    theirs = make(MODELS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    save_weights(tmp_path / "ours.safetensors", load_weights(tmp_path / "theirs"), "flux")
    save_weights(tmp_path / "back", load_weights(tmp_path / "ours.safetensors"), "diffusers")
    assert same_bits(load_strictly(tmp_path / "back", MODELS[name].cls), theirs)


# The same weights in every other form in which they are found.

SD1 = MODELS["sd1"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of theirs, what it computes, its architecture, and its weights in the names of latent-diffusion."""
    folder = tmp_path_factory.mktemp("sd1")
    theirs, images = make(SD1), pictures(SD1)
    theirs.save_pretrained(folder)
    weights = load_weights(folder)
    ldm = {key: torch.from_numpy(np.array(array)) for key, array in weights.to("ldm").items()}
    return theirs, images, ask_diffusers(theirs, images), weights.params, ldm


def test_attention_names_before_0_18(tmp_path, published):
    theirs, images, expected, _, _ = published
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    legacy = {}
    for key, tensor in theirs.state_dict().items():
        for name, old in new.items():
            key = key.replace(f".{name}.", f".{old}.")
        legacy[key] = tensor
    assert set(legacy) != set(theirs.state_dict())
    theirs.save_config(tmp_path)
    save_file(legacy, tmp_path / "diffusion_pytorch_model.safetensors")
    assert_loads(tmp_path, images, expected)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_inside_a_stable_diffusion_checkpoint(tmp_path, published, suffix):
    _, images, expected, params, ldm = published
    tensors = {f"first_stage_model.{key}": tensor for key, tensor in ldm.items()} | {
        "model.diffusion_model.out.2.weight": torch.ones(4, 4),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77),
        "betas": torch.linspace(0, 1, 10),
    }
    path = tmp_path / f"v1-5.{suffix}"
    if suffix == "ckpt":
        torch.save({"state_dict": tensors, "global_step": 840_000}, path)
    else:
        save_file(tensors, path)
    assert_loads(path, images, expected, params)


def test_a_checkpoint_of_lightning(tmp_path, published):
    _, images, expected, params, ldm = published
    loss = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.ones(64, 3, 4, 4)}
    content = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": ldm | loss,
        "callbacks": {},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [],
    }
    torch.save(content, tmp_path / "last.ckpt")
    assert_loads(tmp_path / "last.ckpt", images, expected, params)


def test_shards_as_diffusers_writes_them(tmp_path, published):
    theirs, images, expected, _, _ = published
    theirs.save_pretrained(tmp_path, max_shard_size="2MB")
    assert len(list(tmp_path.glob("diffusion_pytorch_model-*-of-*.safetensors"))) > 1
    assert_loads(tmp_path, images, expected)


def test_what_diffusers_wrote_for_flax(tmp_path, published):
    theirs, images, expected, params, _ = published
    weights = load_weights(_saved(theirs, tmp_path / "torch"))
    ours = {row.theirs: row.op.to_flax(np.asarray(weights.tensors[row.theirs])) for row in expand(params, "diffusers")}
    names = {row.ours: row.theirs for row in expand(params, "diffusers")}
    leaves = {
        row.theirs: np.ascontiguousarray(row.op.to_torch(ours[names[row.ours]]))
        for row in expand(params, "diffusers-flax")
    }
    (tmp_path / "flax").mkdir()
    config = json.loads((tmp_path / "torch" / "config.json").read_text()) | {"_class_name": "FlaxAutoencoderKL"}
    (tmp_path / "flax" / "config.json").write_text(json.dumps(config))
    path = tmp_path / "flax" / "diffusion_flax_model.msgpack"
    path.write_bytes(serialization.to_bytes(unflatten(leaves)))
    assert_loads(tmp_path / "flax", images, expected)


def _saved(theirs, folder: Path) -> Path:
    theirs.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("layout", ["flux", "ldm", "flux2", "diffusers"])
def test_single_files_of_ours_say_what_they_are(tmp_path, published, layout, prefix):
    theirs, images, expected, params, _ = published
    source = load_weights(_saved(theirs, tmp_path / "theirs"))
    path = tmp_path / "vae.safetensors"
    save_weights(path, source, layout, prefix=prefix)
    assert load_weights(path).params == params  # without a preset
    latents, _ = ask_torch(path, images, expected[0].astype(np.float32))
    assert_agree(latents, expected[0], TOLERANCE["float32"])


def test_diffusers_reads_our_single_file_of_ldm(tmp_path, published):
    theirs = published[0]
    save_weights(tmp_path / "ldm.safetensors", load_weights(_saved(theirs, tmp_path / "theirs")), "ldm")
    back = diffusers.AutoencoderKL.from_single_file(
        str(tmp_path / "ldm.safetensors"), config=str(tmp_path / "theirs"), local_files_only=True
    )
    assert same_bits(back, theirs)
