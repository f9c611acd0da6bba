"""Tiny autoencoders: the twins, diffusers' `AutoencoderTiny`, and TAEF2's published weights on real photographs."""

import hashlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

import flax_vae
import torch_ref
from flax_vae.cli import main as cli
from flax_vae.convert import PRESETS, TINY_PRESETS, load_weights, save_folder, save_weights
from flax_vae.convert.cli import main as convert_cli
from flax_vae.convert.formats import read_tensors
from flax_vae.convert.latents import LatentDataset
from flax_vae.images import open_images, to_float, to_uint8
from flax_vae.train.data.shipped import shipped_photographs
from tests.conftest import WEIGHTS
from tests.flax_vae.random_models import quick_jit
from tests.parity.agree import TOLERANCE, assert_agree, nchw, nhwc, random_state_dict, rms_error
from torch_ref.loading import to_tensor

SMALL = replace(TINY_PRESETS["taesd"], ch=16, z_channels=5, encoder_blocks=(1, 2, 1), decoder_blocks=(1, 1, 2))
POOLED = replace(SMALL, pool=True, patch=2)
STUDENT = replace(POOLED, decoder_ch=12, decoder_pool=False)
NORMALISED = replace(POOLED, latent_mean=(0.5, -1.0, 0.0, 2.0, 0.1), latent_std=(0.5, 2.0, 1.5, 3.0, 0.7))
PSNR = {  # of whole photographs, cropped to multiples of 16; measured with the authors' own code
    "astronaut.jpg": 30.36,
    "chelsea.jpg": 32.81,
    "coffee.jpg": 28.90,
    "hubble_deep_field.jpg": 29.59,
    "retina.jpg": 36.41,
    "rocket.jpg": 30.53,
}


def pair(folder, dtype, **where):
    """The model of both frameworks in one dtype, by the shipped loaders."""
    model, params = flax_vae.from_pretrained(folder, param_dtype=jnp.dtype(dtype), **where)
    return model, params, torch_ref.from_pretrained(folder, dtype=getattr(torch, dtype), **where)


def encode_and_decode(model, images):
    latents = model.encode(images)
    return latents, model.decode(latents)


def run_flax(model, params, images, jit=jax.jit):
    return jit(lambda params, x: model.apply({"params": params}, x, method=encode_and_decode))(params, images)


@torch.no_grad()
def run_torch(model, images):
    return [nhwc(output) for output in encode_and_decode(model, nchw(images))]


@pytest.mark.parametrize(
    "params",
    [SMALL, POOLED, STUDENT, NORMALISED],
    ids=["plain", "pools and patches", "narrow decoder", "statistics per channel"],
)
def test_twins_agree_in_values_and_gradients(tmp_path, x64, params):
    save_folder(tmp_path / "model", params, random_state_dict(params))
    model, tree, twin = pair(tmp_path / "model", "float64")
    assert model.params == twin.params == params
    images = np.random.default_rng(0).uniform(-1, 1, (2, 5 * params.factor, 3 * params.factor, 3))

    def loss(tree):
        latents, decoded = model.apply({"params": tree}, images, method=encode_and_decode)
        return (latents**2).sum() + (decoded**2).sum(), (latents, decoded)

    gradients, ours = quick_jit(jax.grad(loss, has_aux=True))(tree)
    theirs = encode_and_decode(twin, nchw(images))
    sum((output**2).sum() for output in theirs).backward()
    for name, one, other in zip(("latents", "images"), ours, theirs, strict=True):
        assert_agree(one, nhwc(other), TOLERANCE["float64"], name)
    assert ours[0].shape == (2, 5, 3, params.latent_channels)
    gradients = flax_vae.convert.to_torch(jax.device_get(gradients), params, "flux")
    for name, weight in twin.named_parameters():
        assert_agree(gradients[name], weight.grad.numpy(), TOLERANCE["float64"], f"gradient of {name}")


def random_theirs(**config):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny(**config).eval()
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            tensor.normal_(0, tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.2)
    return theirs


CONFIGS = {
    "taesd": {},
    "taesd3 and taef1": {"latent_channels": 16},
    "other depths, narrow decoder": {
        "encoder_block_out_channels": (16, 16, 16),
        "decoder_block_out_channels": (12, 12, 12),
        "num_encoder_blocks": (2, 0, 1),
        "num_decoder_blocks": (3, 1, 2),
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_computes_the_same(tmp_path, x64, name):
    theirs = random_theirs(**CONFIGS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    model, tree, twin = pair(tmp_path / "theirs", "float64")
    images = np.random.default_rng(0).uniform(-1, 1, (1, 3 * model.params.factor, 2 * model.params.factor, 3))
    with torch.no_grad():
        z = theirs.double().encode(nchw(images)).latents
        expected = [nhwc(z), nhwc(theirs.decode(z).sample)]
    for what, judge, *ours in zip(
        ("latents", "images"), expected, run_flax(model, tree, images, quick_jit), run_torch(twin, images), strict=True
    ):
        for output in ours:
            assert_agree(output, judge, TOLERANCE["float64"], what)


def settings(model):
    """The configuration as JSON would hold it, without what diffusers notes about the file."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in model.config.items()
        if not key.startswith("_")
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_folders_go_to_diffusers_and_back(tmp_path, name):
    theirs = random_theirs(**CONFIGS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    save_weights(tmp_path / "ours", load_weights(tmp_path / "theirs"))
    weights = load_weights(tmp_path / "ours")
    save_weights(tmp_path / "back", weights, "diffusers")
    back, told = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told.values())
    assert settings(back) == settings(theirs)
    expected = theirs.state_dict()
    assert list(back.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in back.state_dict().items())


# Published weights.

TAEF2 = WEIGHTS / "taef2"
published = pytest.mark.published("taef2")


def photographs():
    """Name and 8-bit pixels of each shipped photograph, cropped to multiples of 16."""
    source = open_images(str(shipped_photographs()))
    for index in range(len(source)):
        image = source[index]
        height, width = (side // 16 * 16 for side in image.shape[:2])
        yield source.name(index), image[:height, :width]


@pytest.mark.slow
@published
def test_taef2_reconstructs_photographs_as_published(optimised):
    model, params, twin = pair(TAEF2, "float32")
    assert model.params == TINY_PRESETS["taef2"]
    measured = {}
    for name, image in photographs():
        x = to_float(image[None])
        ours, theirs = run_flax(model, params, x), run_torch(twin, x)
        # Root mean squares: single numbers of torch's latents of the dark retina are 8e-5 off those in float64.
        assert max(map(rms_error, ours, theirs)) <= 1e-5, name
        error = (np.clip(np.asarray(ours[1], np.float64), -1, 1) - x) / 2  # in [0, 1], as in the published figures
        measured[name] = -10 * np.log10(np.mean(error**2))
    assert measured == pytest.approx(PSNR, abs=0.01)


@published
def test_taef2_agrees_in_float64(x64):
    model, params, twin = pair(TAEF2, "float64")
    x = np.concatenate([to_float(image[None, 64:160, 96:224]) for _, image in photographs()]).astype(np.float64)
    ours = run_flax(model, params, x, quick_jit)
    for what, one, other in zip(("latents", "images"), ours, run_torch(twin, x), strict=True):
        assert_agree(one, other, TOLERANCE["float64"], what)


@published
def test_taef2_goes_to_the_names_of_diffusers_and_back_bit_for_bit(tmp_path, capsys):
    theirs, back = tmp_path / "theirs.safetensors", tmp_path / "back"
    assert convert_cli.main([str(TAEF2), str(theirs), "--to", "diffusers"]) == 0
    assert convert_cli.main([str(theirs), str(tmp_path / "ours"), "--to", "flux"]) == 0
    assert convert_cli.main([str(tmp_path / "ours"), str(back), "--to", "taesd"]) == 0
    keys = load_weights(theirs).tensors
    assert {"encoder.layers.0.weight", "encoder.layers.11.pool.1.bias", "decoder.layers.18.bias"} <= keys.keys()
    for half in ("encoder", "decoder"):
        published = torch.load(TAEF2 / f"taef2_{half}.pth", weights_only=True)
        written = read_tensors(back / f"{half}.safetensors")
        assert digests({key: to_tensor(array) for key, array in written.items()}) == digests(published)
    # As their class would leave the pools out, no folder is written for it.
    assert convert_cli.main([str(TAEF2), str(tmp_path / "folder"), "--to", "diffusers"]) == 1
    assert "AutoencoderTiny has no pools" in capsys.readouterr().err


def digests(state_dict):
    return {
        key: (str(tensor.dtype), hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
        for key, tensor in state_dict.items()
    }


@published
def test_taef2_latents_are_latents_of_flux2s_commands(tmp_path):
    """What TAEF2 encodes, FLUX.2's decoder takes, and the other way round: one shape, and numbers of unit size."""
    pictures, latents = tmp_path / "pictures", tmp_path / "latents"
    pictures.mkdir()
    for name, image in photographs():
        Image.fromarray(image[96:160, 128:224]).save(pictures / f"{name.removesuffix('.jpg')}.png")
    narrow = replace(PRESETS["flux2"], ch=32, num_res_blocks=1)
    save_folder(tmp_path / "flux2", narrow, random_state_dict(narrow, "float32"))
    words = ["encode", str(pictures), str(latents), "--model", str(TAEF2)]
    assert cli.main(words) == 0
    words = ["decode", str(latents), str(tmp_path / "decoded"), "--model", str(tmp_path / "flux2")]
    assert cli.main(words) == 1  # another model
    assert cli.main([*words, "--other-model"]) == 0

    data = LatentDataset(latents)
    z = np.stack([data[i]["latent"] for i in range(len(data))])
    assert z.shape == (6, 4, 6, 128)
    assert abs(z.mean()) < 0.1 and 0.6 < z.std() < 1.1  # normalised, as those of FLUX.2
    model, params = flax_vae.from_pretrained(tmp_path / "flux2")
    expected = to_uint8(np.asarray(model.apply({"params": params}, z, method="decode")))
    for index in range(6):
        made = np.asarray(Image.open(tmp_path / "decoded" / data[index]["name"]))
        assert np.abs(made.astype(int) - expected[index]).max() <= 1

    words = ["encode", str(pictures), str(tmp_path / "theirs"), "--model", str(tmp_path / "flux2"), "--store", "mean"]
    assert cli.main(words) == 0
    words = ["decode", str(tmp_path / "theirs"), str(tmp_path / "preview"), "--model", str(TAEF2), "--other-model"]
    assert cli.main(words) == 0
    assert len(list((tmp_path / "preview").glob("*.png"))) == 6
