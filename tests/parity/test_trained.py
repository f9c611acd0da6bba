"""What a run exports: PyTorch loads it strictly, and both frameworks see the held-out photograph alike."""

import json
from dataclasses import replace

import jax
import numpy as np
import safetensors.torch
import torch

import flax_vae
import torch_ref
from flax_vae.images.sizes import to_float
from flax_vae.train.config.recipes import recipe
from flax_vae.train.config.schema import DataConfig
from flax_vae.train.data.photographs import held_out_image
from flax_vae.train.loop import train
from tests.parity.agree import nchw, nhwc


def reconstruct_in_both(folder):
    """Returns the held-out photograph as each framework reconstructs it."""
    photograph = to_float(held_out_image(DataConfig())[0][None])
    model, params = flax_vae.from_pretrained(folder)
    ours = jax.jit(lambda params, x: model.apply({"params": params}, x, sample=False))(params, photograph)
    with torch.no_grad():
        theirs = torch_ref.from_pretrained(folder)(nchw(photograph), sample=False)
    return np.asarray(ours), nhwc(theirs)


def test_an_exported_model_is_the_same_in_both(tmp_path):
    config = recipe("tiny")
    config = replace(config, model=replace(config.model, ch_mult=(1, 1)), steps=3, batch_size=2)
    train(config, tmp_path / "run")
    export = tmp_path / "run" / "export"

    # Without any code of ours but the model's: the file's names are the model's own.
    record = torch_ref.AutoEncoderParams.from_dict(json.loads((export / "config.json").read_text()))
    model = torch_ref.AutoEncoder(record)
    model.load_state_dict(safetensors.torch.load_file(export / "model.safetensors"), strict=True)

    ours, theirs = reconstruct_in_both(export)
    assert ours.shape == (1, 256, 384, 3)
    assert np.abs(ours - theirs).max() <= 1e-4  # of the range [-1, 1]: far below one step of eight bits
