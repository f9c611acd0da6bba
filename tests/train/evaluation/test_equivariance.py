"""The equivariance error beside models of which it is known, and beside a second computation."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flax_vae import AutoEncoder
from flax_vae.convert import PRESETS
from flax_vae.images import to_float
from flax_vae.train.evaluation import equivariance_psnr
from flax_vae.train.losses import transform_pair
from tests.flax_vae.random_models import PLAIN, quick_jit, random_params

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 17, 24, 3), np.uint8)


class Shifted(nn.Module):
    """Latents are the images; decoding adds `shift` to its left column alone, or to all of them."""

    shift: float = 0.0
    left: bool = False
    params = replace(PRESETS["tiny"], ch_mult=(1,))

    def encode(self, x, time, *, sample):
        return x

    def scale(self, z):
        return z

    unscale = scale

    def decode(self, z, time):
        return z.at[:, :, :1].add(self.shift) if self.left else z + self.shift


def shifted(*fields) -> Any:
    return Shifted(*fields)


def test_an_equivariant_decoder_has_the_error_of_its_reconstruction():
    # A mean squared error of (1/4)², of images whose range is 2.
    images = IMAGES // 4 + 96
    np.testing.assert_allclose(equivariance_psnr(shifted(0.25), {}, images), 10 * np.log10(4 / 0.25**2), rtol=1e-6)
    assert np.isinf(equivariance_psnr(shifted(), {}, images)).all()


def test_it_averages_decibels_over_scales_and_turns():
    images = IMAGES // 4 + 96
    found = equivariance_psnr(shifted(0.25, True), {}, images, scales=(1.0, 0.5), turns=(0, 1))
    # The left column of 24 or 17; of 12 or, as half of 17 is rounded up, 9.
    expected = np.mean([10 * np.log10(4 * columns / 0.25**2) for columns in (24, 17, 12, 9)])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_it_is_the_psnr_of_decoded_transformed_latents():
    """Of a model with patches: the raw latents are turned, by whole patches."""
    model = AutoEncoder(replace(PLAIN, ch_mult=(1,), latent_norm="batch_norm", scale_factor=1.0, shift_factor=0.0))
    params = random_params(model)
    found = equivariance_psnr(model, params, IMAGES[:, :13, :14], scales=(0.75,), turns=(3,))

    @quick_jit
    def expected(images):
        apply: Any = partial(model.apply, {"params": params})
        target, z = transform_pair(images, apply(images, method="posterior").mode(), (10, 10), 3)
        output = jnp.clip(apply(apply(z, method="scale"), method="decode"), -1, 1)
        return 10 * jnp.log10(4 / jnp.mean((output - target) ** 2, axis=(1, 2, 3)))

    np.testing.assert_allclose(found, expected(jnp.asarray(to_float(IMAGES[:, :12, :14]))), rtol=1e-4)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="smaller than 2 x 2"):
        equivariance_psnr(AutoEncoder(PLAIN), {}, IMAGES[:, :1])
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        equivariance_psnr(AutoEncoder(PLAIN), {}, IMAGES, scales=(2,))
