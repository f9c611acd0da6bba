"""Mistakes that a parity test must not survive: each fails by at least a hundred times the tolerance.

They give all the other tests their meaning: q, k and v are square, so no shape check sees a forgotten transpose, and
the wrong padding or epsilon fits every checkpoint.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

import flax_vae.attention
import flax_vae.layers
from tests.parity.agree import (
    TOLERANCE,
    difference,
    flax_model,
    inputs,
    predict_torch,
    quick_jit,
    random_state_dict,
    torch_model,
)
from tests.parity.cases import MODELS

PARAMS = MODELS["middle attention"]


def transpose_q(monkeypatch, params, tree):
    attention = tree["encoder"]["mid"]["attn_1"]
    attention["q"]["kernel"] = jnp.swapaxes(attention["q"]["kernel"], 2, 3)
    return params, tree


def swap_padding(monkeypatch, params, tree):
    return replace(params, downsample_padding="symmetric"), tree


def wrong_epsilon(monkeypatch, params, tree):
    monkeypatch.setattr(flax_vae.layers, "NORM_EPS", 1e-5)
    return params, tree


def drop_a_bias(monkeypatch, params, tree):
    bias = tree["decoder"]["up_1"]["upsample"]["conv"]["bias"]
    tree["decoder"]["up_1"]["upsample"]["conv"]["bias"] = jnp.zeros_like(bias)
    return params, tree


def unscaled_attention(monkeypatch, params, tree):
    scaled = flax_vae.attention.attention
    monkeypatch.setattr(
        flax_vae.layers, "attention", lambda q, k, v, path: scaled(q * q.shape[-1] ** 0.5, k, v, path=path)
    )
    return params, tree


def swap_height_and_width_of_kernels(monkeypatch, params, tree):
    kernel = tree["encoder"]["conv_in"]["kernel"]
    tree["encoder"]["conv_in"]["kernel"] = jnp.swapaxes(kernel, 0, 1)
    return params, tree


def forget_the_shift(monkeypatch, params, tree):
    return replace(params, shift_factor=0.0), tree


MISTAKES = [
    transpose_q,
    swap_padding,
    wrong_epsilon,
    drop_a_bias,
    unscaled_attention,
    swap_height_and_width_of_kernels,
    forget_the_shift,
]


def no_mistake(monkeypatch, params, tree):
    return params, tree


def apart(monkeypatch, mistake) -> float:
    """How far the latents and images of a model with the mistake are from torch's, in the reference's RMS."""
    state_dict = random_state_dict(PARAMS)
    expected = predict_torch(torch_model(PARAMS, state_dict), *inputs(PARAMS, 12, 20))
    tree = jax.tree.map(jnp.asarray, flax_model(PARAMS, state_dict)[1])
    params, tree = mistake(monkeypatch, PARAMS, tree)
    images, time, noise = inputs(PARAMS, 12, 20)
    model = flax_vae.AutoEncoder(params)

    @quick_jit
    def both(tree):
        latents = model.apply({"params": tree}, images, time, noise=noise, method="encode")
        return latents, model.apply({"params": tree}, images, time, noise=noise)

    latents, outputs = both(tree)
    return max(difference(latents, expected["latents"]), difference(outputs, expected["images"]))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_mistake_is_seen(monkeypatch, mistake):
    assert apart(monkeypatch, mistake) >= 100 * TOLERANCE["float64"]


@pytest.mark.usefixtures("x64")
def test_without_a_mistake_nothing_is_seen(monkeypatch):
    assert apart(monkeypatch, no_mistake) <= TOLERANCE["float64"]
