"""Decoding band by band equals decoding at once."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae import AutoEncoder
from flax_vae.inference import band_ops as bands
from flax_vae.inference.banded_decode import MAP_BYTES, Map, decode_in_bands
from tests.flax_vae.random_models import PLAIN, apart, random_inputs, random_params

TOLERANCE = 1e-5  # of the RMS
SIZE = (2, 7, 3)  # of the latents: images of 14 or 28 rows

TIMED = replace(PLAIN, attn_levels=(0,), time_emb_dim=10, quant_conv=True, out_ch=2)
SINUSOIDAL = replace(PLAIN, ch_mult=(1,), time_emb_dim=12, time_embedding="sinusoidal")
PATCHED = replace(PLAIN, ch_mult=(1,), quant_conv=True, latent_norm="batch_norm", scale_factor=1.0, shift_factor=0.0)
REFLECTED = replace(PLAIN, padding_mode="reflect", mid_attention=False, decoder_widths=(96, 32), post_quant_conv=True)


def whole(model, params, z, time):
    return jax.jit(lambda *inputs: model.apply({"params": inputs[0]}, *inputs[1:], method="decode"))(params, z, time)


@cache
def case(record):
    """Returns a model, parameters without the encoder's, inputs, and the expected image."""
    model = AutoEncoder(record)
    params = random_params(model)
    del params["encoder"]
    inputs = random_inputs(record, SIZE, record.latent_channels)
    return model, params, inputs, np.asarray(whole(model, params, *inputs))


@pytest.mark.parametrize(
    ("record", "band_rows", "map_bytes"),
    # With 0 bytes, intermediate results are computed again.
    [(PLAIN, 1, 0), (PLAIN, 3, MAP_BYTES), (PLAIN, 64, 0), (TIMED, 5, 0), (SINUSOIDAL, 4, MAP_BYTES)]
    + [(PATCHED, 8, MAP_BYTES), (REFLECTED, 1, MAP_BYTES), (REFLECTED, 3, 0), (REFLECTED, 64, MAP_BYTES)],
    ids=["one row", "no divisor of the height", "all rows", "attention and time", "sinusoidal time", "latent norm"]
    + ["reflection, one row", "reflection, no divisor", "reflection, all rows"],
)
def test_bands_give_an_equal_image(record, band_rows, map_bytes):
    model, params, inputs, expected = case(record)
    images = decode_in_bands(model, params, *inputs, band_rows=band_rows, map_bytes=map_bytes)
    assert isinstance(images, np.ndarray)
    assert images.dtype == np.float32
    assert apart(images, expected) <= TOLERANCE


def test_float64_stays_float64(x64):
    model = AutoEncoder(PLAIN, param_dtype=jnp.float64)
    params = random_params(model, "float64")
    z = random_inputs(PLAIN, SIZE, PLAIN.latent_channels)[0].astype(np.float64)
    images = decode_in_bands(model, params, z, band_rows=6)
    assert images.dtype == np.float64
    assert apart(images, whole(model, params, z, None)) <= 1e-12


def test_bfloat16_is_as_accurate(optimised):
    _, params, inputs, exact = case(PATCHED)
    model = AutoEncoder(PATCHED, dtype=jnp.bfloat16)
    images = decode_in_bands(model, params, *inputs, band_rows=6)
    assert images.dtype == np.float32
    error, plain = (np.square(x - exact).mean() for x in (images, np.asarray(whole(model, params, *inputs), "float32")))
    assert error <= 1.5**2 * plain


def statistics_of_a_tile(monkeypatch):
    """Returns mean and variance of some rows only, as a decoder of tiles does."""
    honest = Map.statistics
    monkeypatch.setattr(Map, "statistics", lambda x: honest(replace(x, mean=x.mean[:6], deviation=x.deviation[:6])))


def rows_from_outside(monkeypatch):
    """Returns the rows outside the image unchanged instead of as zeros."""
    monkeypatch.setattr(bands.Band, "padded", lambda band, mode: band.x)


@pytest.mark.parametrize("mistake", [statistics_of_a_tile, rows_from_outside])
def test_negative_control(monkeypatch, mistake):
    model, params, inputs, expected = case(PLAIN)
    bands.run_ops.clear_cache()
    mistake(monkeypatch)
    images = decode_in_bands(model, params, *inputs, band_rows=64)
    bands.run_ops.clear_cache()
    assert apart(images, expected) >= 100 * TOLERANCE


def test_bad_arguments_are_refused():
    model, params, (z, time), _ = case(TIMED)
    for arguments, options, message in [
        ((z, time), {"band_rows": 0}, "band_rows=0 must be positive"),
        ((z,), {}, r"pass time of shape \(2, 10\)"),
        ((z[..., :3], time), {}, "have 3 channels"),
    ]:
        with pytest.raises(ValueError, match=message):
            decode_in_bands(model, params, *arguments, **options)
