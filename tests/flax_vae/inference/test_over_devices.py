"""Rows split over devices give an equal image; `tests/conftest.py` provides two devices."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from flax_vae import AutoEncoder
from flax_vae.inference.over_devices import decode_over_devices, moments_over_devices
from flax_vae.ops import upsampling
from tests.flax_vae.random_models import PLAIN, apart, random_inputs, random_params

TOLERANCE = 1e-5  # of the RMS
TIMED = replace(PLAIN, attn_levels=(1,), time_emb_dim=10, quant_conv=True)
PATCHED = replace(PLAIN, ch_mult=(1,), quant_conv=True, latent_norm="batch_norm", scale_factor=1.0, shift_factor=0.0)
REFLECTED = replace(PLAIN, padding_mode="reflect", mid_attention=False, decoder_widths=(96, 32), post_quant_conv=True)


def on_one(model, params, x, time, method):
    return jax.jit(lambda *inputs: model.apply({"params": inputs[0]}, *inputs[1:], method=method))(params, x, time)


def assert_split_and_equal(ours, expected):
    assert len({shard.device for shard in ours.addressable_shards}) == 2
    assert {shard.data.shape[1] for shard in ours.addressable_shards} == {expected.shape[1] // 2}
    assert apart(ours, expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("record", "platform"),
    [(TIMED, "cuda"), (PATCHED, "cpu"), (REFLECTED, "tpu")],
    ids=["attention and time", "latent norm", "reflection"],
)
def test_decoding_over_devices(monkeypatch, record, platform):
    """With upsampling as each platform computes it."""
    monkeypatch.setitem(upsampling.WAYS, "cpu", upsampling.WAYS[platform])
    model = AutoEncoder(record)
    params = random_params(model)
    inputs = random_inputs(record, (1, 6, 3), record.latent_channels)
    images = decode_over_devices(model, params, *inputs)
    assert_split_and_equal(images, on_one(model, params, *inputs, "decode"))


@pytest.mark.parametrize("padding", ["symmetric", "asymmetric", "reflect"])
def test_encoding_over_devices(padding):
    changes = {"padding_mode": "reflect", "downsample_padding": "symmetric"}
    record = replace(PLAIN, **(changes if padding == "reflect" else {"downsample_padding": padding}))
    model = AutoEncoder(record)
    params = random_params(model)
    inputs = random_inputs(record, (1, 12, 10), 3)
    moments = moments_over_devices(model, params, *inputs)
    assert_split_and_equal(moments, on_one(model, params, *inputs, "moments"))


def test_negative_control_over_devices():
    """Two separately decoded halves show a seam, which exceeds the tolerance."""
    model = AutoEncoder(PLAIN)
    params = random_params(model)
    z, _ = random_inputs(PLAIN, (1, 6, 3), PLAIN.latent_channels)
    halves = np.concatenate([on_one(model, params, half, None, "decode") for half in np.split(z, 2, axis=1)], axis=1)
    assert apart(halves, on_one(model, params, z, None, "decode")) >= 100 * TOLERANCE


def test_rows_that_do_not_divide_are_refused():
    model = AutoEncoder(PLAIN)
    with pytest.raises(ValueError, match="latents of 5 rows cannot be split over 2 devices: .* multiple of 2; pad"):
        decode_over_devices(model, {}, np.zeros((1, 5, 4, 4)))
    with pytest.raises(ValueError, match="images of 6 rows cannot be split over 2 devices: .* multiple of 4; pad"):
        moments_over_devices(model, {}, np.zeros((1, 6, 4, 3)))
