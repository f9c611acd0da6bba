"""Tests that a student is a whole model of diffusers, and a whole file of Black Forest Labs."""

from dataclasses import replace

import jax
import numpy as np
import torch
from safetensors.torch import load_file

import torch_ref
from flax_vae import AutoEncoder, save_pretrained
from flax_vae.convert import load_weights, save_folder, save_weights
from flax_vae.train.build import load_start, make_components, make_state
from flax_vae.train.config import DataConfig, TrainConfig, with_teacher
from tests.flax_vae.random_models import random_params
from tests.parity.agree import TOLERANCE, assert_agree, random_state_dict
from tests.train.test_distillation import STUDENT, TEACHER, TINY_STUDENT, assert_same


def test_a_tiny_students_decoder_loads_in_diffusers(tmp_path):
    from diffusers import AutoencoderTiny

    pooled = replace(TINY_STUDENT, z_channels=5)  # the encoder has pools, which diffusers does not know
    save_folder(tmp_path / "pooled", pooled, random_state_dict(pooled))
    save_weights(tmp_path / "pooled.safetensors", load_weights(tmp_path / "pooled"), "diffusers")
    tensors = load_file(tmp_path / "pooled.safetensors")
    config = {"latent_channels": 5, "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    theirs = AutoencoderTiny(**config, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(6, 6)).double()
    decoder = {k.removeprefix("decoder."): v.double() for k, v in tensors.items() if k.startswith("decoder.")}
    theirs.decoder.load_state_dict(decoder, strict=True)
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 5, 3, 4)))
    with torch.no_grad():
        ours = torch_ref.from_pretrained(tmp_path / "pooled", dtype=torch.float64).decoder(z)
        assert_agree(ours, theirs.decoder(z), TOLERANCE["float64"], "images")


def test_a_student_loads_in_diffusers_and_in_the_layout_of_flux2(tmp_path, x64):
    from diffusers import AutoencoderKLFlux2

    teacher = AutoEncoder(TEACHER)
    save_pretrained(tmp_path / "teacher", teacher, random_params(teacher))
    config = with_teacher(TrainConfig(STUDENT, DataConfig(crop_size=16)), str(tmp_path / "teacher"))
    components = make_components(config)
    state = make_state(config, components, load_start(config))
    save_pretrained(tmp_path / "student", components.model, jax.device_get(state.params))

    weights = load_weights(tmp_path / "student")
    save_weights(tmp_path / "diffusers", weights, "diffusers")
    theirs, report = AutoencoderKLFlux2.from_pretrained(
        tmp_path / "diffusers", output_loading_info=True, low_cpu_mem_usage=False
    )
    assert not any(report.values())
    assert theirs.config.decoder_block_out_channels == [32, 32]
    z = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    variables = {"params": jax.tree.map(np.float64, state.params)}
    model = AutoEncoder(replace(STUDENT, latent_norm="scale"))  # theirs takes the raw latent
    ours = model.apply(
        {"params": {k: v for k, v in variables["params"].items() if k != "bn"}}, z.astype(np.float64), method="decode"
    )
    with torch.no_grad():
        found = theirs.double().decode(torch.from_numpy(z).double().permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours, found, rtol=0, atol=1e-10 * float(found.std()))

    save_weights(tmp_path / "ae.safetensors", weights, "flux2")
    back = load_weights(tmp_path / "ae.safetensors")
    assert back.layout == "flux2" and back.params.decoder_widths == (32, 32)
    assert_same(back.to("flux"), weights.tensors)
