"""The Flax model of a tiny autoencoder: its interface, and how inference treats it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae import TinyAutoEncoder, TinyAutoEncoderParams, decode_in_bands, init_params, to_nnx
from flax_vae.errors import UserError
from flax_vae.folders import encoding_of
from flax_vae.inference import moments_over_devices, needs_bands, reconstruct
from tests.flax_vae.random_models import apart, random_params

PARAMS = TinyAutoEncoderParams(z_channels=3, ch=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1), pool=True, patch=2)
MODEL = TinyAutoEncoder(PARAMS, dtype=jnp.dtype("float32"))


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL)


def test_shapes_and_the_inverse_of_patches(params):
    images = jax.random.uniform(jax.random.key(0), (2, 8, 12, 3), minval=-1)
    z = MODEL.apply({"params": params}, images, sample=False, method="encode")
    assert z.shape == (2, 2, 3, 12)
    raw = MODEL.apply({"params": params}, images, method="moments")
    assert np.array_equal(raw, MODEL.apply({"params": params}, z, method="unscale"))
    assert np.array_equal(z[0, 1, 2], raw[0, 2:4, 4:6].transpose(2, 0, 1).reshape(-1))  # (c pi pj)
    assert MODEL.apply({"params": params}, images).shape == images.shape
    assert jax.tree.map(jnp.shape, init_params(MODEL, jax.random.key(0))) == jax.tree.map(jnp.shape, params)
    assert apart(to_nnx(MODEL, params)(images), MODEL.apply({"params": params}, images)) < 1e-5


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ({"sample": True}, "no posterior to sample from"),
        ({"noise": np.zeros((1, 2, 2, 3), np.float32)}, "no posterior to sample from"),
        ({"time": np.zeros(1, np.float32)}, "no time embedding"),
    ],
)
def test_what_only_other_autoencoders_have_is_refused(params, call, complaint):
    with pytest.raises(ValueError, match=complaint):
        MODEL.apply({"params": params}, np.zeros((1, 4, 4, 3), np.float32), method="encode", **call)


def test_sizes_and_options_are_checked(params):
    with pytest.raises(ValueError, match="expected positive multiples of 4"):
        MODEL.apply({"params": params}, np.zeros((1, 4, 6, 3), np.float32), method="encode")
    with pytest.raises(ValueError, match="have 3 channels as 'b h w c'; expected 12"):
        MODEL.apply({"params": params}, np.zeros((1, 2, 2, 3), np.float32), method="decode")
    with pytest.raises(ValueError, match="remat='some' must be one of"):
        TinyAutoEncoder(PARAMS, remat="some")  # pyright: ignore[reportArgumentType]


def test_inference_takes_it_as_it_takes_the_others(params):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 7, 9, 3), np.uint8)
    made = reconstruct(MODEL, params, image)
    assert made.images.shape == (1, 7, 9, 3) and made.mean.shape == (1, 4, 6, 3) and made.logvar is None
    assert apart(reconstruct(MODEL, params, image, in_bands=True).images, made.images) < 1e-5
    assert not needs_bands(PARAMS, 1 << 14, 1 << 14)
    z = rng.standard_normal((2, 2, 3, 12)).astype(np.float32)
    assert apart(decode_in_bands(MODEL, params, z), MODEL.apply({"params": params}, z, method="decode")) < 1e-5
    x = rng.uniform(-1, 1, (1, 8, 8, 3)).astype(np.float32)
    over = moments_over_devices(MODEL, params, x, devices=jax.devices()[:2])
    assert apart(over, MODEL.apply({"params": params}, x, method="moments")) < 1e-5


def test_only_the_latent_itself_is_stored(params):
    assert encoding_of(MODEL, params, store="mean", dtype="float32").channels == 12
    for store in ("moments", "sample"):
        with pytest.raises(UserError, match="needs a posterior, which a tiny autoencoder does not have"):
            encoding_of(MODEL, params, store=store, dtype="float32")


def test_gradients_are_recomputed_where_that_is_asked_for(params):
    images = jax.random.uniform(jax.random.key(0), (1, 4, 4, 3), minval=-1)

    def loss(params, model):
        return jnp.square(model.apply({"params": params}, images)).sum()

    plain, again = (jax.grad(loss)(params, TinyAutoEncoder(PARAMS, remat=remat)) for remat in ("none", "blocks"))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: apart(a, b) < 1e-5, again, plain)))
