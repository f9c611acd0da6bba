"""The posterior with logvars near, on and far beyond the limits, beside diffusers' and the seed's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flax_vae
import torch_ref
from flax_vae.convert import PRESETS, load_weights
from flax_vae.convert.architecture.autoencoder import LOGVAR_MAX, LOGVAR_MIN
from flax_vae.convert.latents.index import Encoding
from flax_vae.convert.weights.folder import save_folder
from flax_vae.folders.batch_encoder import LatentEncoder
from tests.parity import seed
from tests.parity.agree import assert_agree, flax_model, inputs, nchw, nhwc, random_state_dict, torch_model

diffusers = pytest.importorskip("diffusers")
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64")

TOLERANCE = 1e-12
LOGVARS = (-1e4, -100, np.nextafter(-30, -31), -30, np.nextafter(-30, 0), -1, 0.5, np.nextafter(20, 0), 20, 20.001, 1e3)
SMALL = dataclasses.replace(PRESETS["sd1"], ch=32, ch_mult=(1,), num_res_blocks=1, resolution=8)


def far_moments() -> tuple[np.ndarray, np.ndarray]:
    """Moments `b h w 2*z` in which every logvar of the list occurs, and noise."""
    rng = np.random.default_rng(0)
    mean, noise = rng.standard_normal((2, 2, 11, 2, 3))
    logvar = np.broadcast_to(np.array(LOGVARS)[None, :, None, None], mean.shape)
    return np.concatenate([mean, logvar], axis=-1), noise


def outputs(posterior, noise) -> tuple:
    return posterior.mean, posterior.logvar, posterior.std, posterior.sample(noise=noise), posterior.kl()


def test_far_logvars_equal_diffusers():
    moments, noise = far_moments()
    theirs = DiagonalGaussianDistribution(nchw(moments))
    expected = theirs.mean, theirs.logvar, theirs.std, theirs.mean + theirs.std * nchw(noise), theirs.kl()
    torch_twin = torch_ref.DiagonalGaussian(clamp_logvar=True).posterior(nchw(moments))
    ours = flax_vae.DiagonalGaussian(clamp_logvar=True).apply({}, moments, method="posterior")
    names = ("mean", "logvar", "std", "sample", "KL")
    for name, a, b, c in zip(names, outputs(torch_twin, nchw(noise)), outputs(ours, noise), expected, strict=True):
        c = nhwc(c)
        np.testing.assert_allclose(nhwc(a), c, rtol=TOLERANCE, atol=0, err_msg=f"torch {name}")
        np.testing.assert_allclose(b, c, rtol=TOLERANCE, atol=0, err_msg=f"flax {name}")
    # As a call draws, too
    drawn = flax_vae.DiagonalGaussian(clamp_logvar=True).apply({}, moments, noise=noise)
    np.testing.assert_allclose(drawn, nhwc(expected[3]), rtol=TOLERANCE)


@pytest.mark.parametrize("what", ["kl", "sample"])
def test_gradients_of_far_logvars_equal_diffusers(what):
    moments, noise = far_moments()
    weights = np.random.default_rng(1).standard_normal(2 if what == "kl" else noise.shape)

    def loss(posterior, noise, weights):
        value = posterior.kl() if what == "kl" else posterior.mean + posterior.std * noise
        return (value * weights).sum()

    def torch_gradient(make):
        leaf = nchw(moments).requires_grad_(True)
        loss(make(leaf), nchw(noise), torch.tensor(weights) if what == "kl" else nchw(weights)).backward()
        assert leaf.grad is not None
        return nhwc(leaf.grad)

    expected = torch_gradient(DiagonalGaussianDistribution)
    twin = torch_gradient(torch_ref.DiagonalGaussian(clamp_logvar=True).posterior)

    def ours(moments):
        posterior = flax_vae.DiagonalGaussian(clamp_logvar=True).apply({}, moments, method="posterior")
        return loss(posterior, noise, weights)

    np.testing.assert_allclose(twin, expected, rtol=TOLERANCE, atol=0)
    np.testing.assert_allclose(jax.grad(ours)(moments), expected, rtol=TOLERANCE, atol=0)
    by_logvar = np.abs(expected[..., 3:]).sum((0, 2, 3))
    inside = np.array([LOGVAR_MIN <= logvar <= LOGVAR_MAX for logvar in LOGVARS])
    np.testing.assert_array_equal(by_logvar > 0, inside)  # the limits themselves have a gradient


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_clamp_is_torchs_at_ties_infinities_and_nan(dtype):
    logvar = np.array([-np.inf, -31, -30, -29.5, 3, 19.5, 20, 21, np.inf, np.nan])
    leaf = torch.tensor(logvar, dtype=getattr(torch, dtype), requires_grad=True)
    expected = torch.clamp(leaf, LOGVAR_MIN, LOGVAR_MAX)
    expected.backward(torch.ones_like(expected))
    assert leaf.grad is not None
    moments = jnp.asarray(np.concatenate([np.zeros(10), logvar])[None, None, None], dtype)

    def clamped(moments):
        return flax_vae.DiagonalGaussian(clamp_logvar=True).apply({}, moments, method="posterior").logvar

    value, pull_back = jax.vjp(clamped, moments)
    assert value.dtype == moments.dtype
    np.testing.assert_array_equal(np.asarray(value[0, 0, 0], np.float64), expected.detach().double().numpy())
    (gradient,) = pull_back(jnp.ones_like(value))
    np.testing.assert_array_equal(np.asarray(gradient[0, 0, 0, 10:], np.float64), leaf.grad.double().numpy())


def test_without_the_switch_a_far_logvar_is_the_seeds():
    moments, noise = far_moments()
    moments = np.where(np.abs(moments) > 200, 0, moments)
    original = seed.DiagonalGaussian()
    torch.manual_seed(0)
    expected = nhwc(original(nchw(moments)))
    torch.manual_seed(0)
    noise = torch.randn(nchw(noise).shape, dtype=torch.float64)
    ours = flax_vae.DiagonalGaussian().apply({}, moments, noise=nhwc(noise))
    np.testing.assert_allclose(ours, expected, rtol=TOLERANCE)
    np.testing.assert_allclose(nhwc(torch_ref.DiagonalGaussian()(nchw(moments), noise=noise)), expected, rtol=TOLERANCE)


def far_weights() -> dict[str, np.ndarray]:
    """Weights of `SMALL` whose logvars lie beyond both limits, and between them."""
    state_dict = random_state_dict(SMALL)
    state_dict["quant_conv.bias"][4:] = [100, -60, 1, -30]
    return state_dict


@pytest.mark.parametrize("clamp", [True, False], ids=["clamped", "unclamped"])
def test_all_that_a_model_gives_goes_through_the_same_limits(clamp):
    params = dataclasses.replace(SMALL, clamp_logvar=clamp)
    images, _, noise = inputs(params, 8, 8)
    twin = torch_model(params, far_weights())
    model, tree = flax_model(params, far_weights())
    variables = {"params": tree}
    posterior = model.apply(variables, images, method="posterior")
    limits = (float(posterior.logvar.min()), float(posterior.logvar.max()))
    assert (limits == (LOGVAR_MIN, LOGVAR_MAX)) == clamp
    assert clamp or (limits[0] < -50 and limits[1] > 90)
    with torch.no_grad():
        theirs = twin.posterior(nchw(images))
        assert_agree(posterior.logvar, nhwc(theirs.logvar), 1e-10, "logvar")
        np.testing.assert_allclose(posterior.kl(), theirs.kl(), rtol=1e-10)
        drawn = nhwc(twin.encode(nchw(images), noise=nchw(noise)))
    assert_agree(model.apply(variables, images, noise=noise, method="encode"), drawn, 1e-10, "a sample")
    # As data sets of latents are made
    encoding = Encoding("0" * 64, params, "moments", "float32", "float64", 1)
    stored = LatentEncoder(model, tree, encoding, jax.local_devices()[:1])(2, images, np.zeros(2, np.uint32))
    assert_agree(stored["logvar"], posterior.logvar, 1e-10, "stored logvar")


def test_a_diffusers_folder_is_limited_as_diffusers_does(tmp_path):
    theirs = diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4, sample_size=8)
    with torch.no_grad():
        theirs.quant_conv.bias[4:] = torch.tensor([100.0, -60.0, 1.0, -30.0])
    theirs.save_pretrained(tmp_path / "vae")
    model, params = flax_vae.from_pretrained(tmp_path / "vae", param_dtype=jnp.float64)
    images, _, noise = inputs(model.params, 8, 8)
    with torch.no_grad():
        expected = theirs.double().encode(nchw(images)).latent_dist
    posterior = model.apply({"params": params}, images, method="posterior")
    np.testing.assert_allclose(posterior.kl(), expected.kl(), rtol=1e-10)
    assert_agree(posterior.sample(noise=noise), nhwc(expected.mean + expected.std * nchw(noise)), 1e-10, "a sample")
    twin = torch_ref.from_pretrained(tmp_path / "vae").double()
    np.testing.assert_allclose(twin.posterior(nchw(images)).kl().detach(), expected.kl(), rtol=1e-10)


def test_an_architecture_that_is_passed_decides(tmp_path):
    unlimited = dataclasses.replace(SMALL, clamp_logvar=False)
    save_folder(tmp_path / "model", unlimited, far_weights())
    assert load_weights(tmp_path / "model").params == unlimited
    assert load_weights(tmp_path / "model", SMALL).params == SMALL
    save_folder(tmp_path / "limited", SMALL, far_weights())
    assert load_weights(tmp_path / "limited").params == SMALL
    assert load_weights(tmp_path / "limited", unlimited).params == unlimited
