"""Tests of the adversarial losses; `tests/parity/test_adversarial.py` compares them with PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.convert.architecture.discriminator import DiscriminatorParams
from flax_vae.train.losses.adversarial import (
    adaptive_weight,
    choose,
    hinge_d,
    hinge_g,
    non_saturating_d,
    non_saturating_g,
    r1_penalty,
)


def logits(*values):
    return jnp.array(values, jnp.float32).reshape(1, 1, -1, 1)


def test_values_computed_by_hand():
    real, fake = logits(3.0, 0.5), logits(-2.0, 0.0)
    assert hinge_d(real, fake) == pytest.approx(0.5 * (0.25 + 0.5))
    assert hinge_g(fake) == pytest.approx(1.0)
    assert non_saturating_d(logits(0.0), logits(0.0)) == pytest.approx(np.log(2))
    assert non_saturating_g(logits(100.0)) == pytest.approx(0, abs=1e-6)
    assert non_saturating_g(logits(-1e4)) == pytest.approx(1e4)  # log(1 + exp(1e4)) without overflow


@pytest.mark.parametrize("name", ["hinge", "non_saturating"])
def test_the_two_losses_have_opposite_gradients(name):
    losses = choose(name)
    at = logits(0.3)
    by_real, by_fake = jax.grad(losses.discriminator, (0, 1))(at, at)
    assert by_real < 0 < by_fake
    assert jax.grad(losses.autoencoder)(at) < 0


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="loss='vanilla' must be one of hinge, non_saturating"):
        choose("vanilla")


def test_losses_of_bfloat16_logits_are_float32():
    real = jnp.full((1, 1, 1000, 1), 0.3, jnp.bfloat16)
    for loss in (hinge_d(real, real), hinge_g(real), non_saturating_d(real, real), non_saturating_g(real)):
        assert loss.dtype == jnp.float32
    # A sum in bfloat16 stops growing at 256 times its terms.
    assert hinge_g(real) == pytest.approx(-float(real[0, 0, 0, 0]), rel=1e-5)


def test_adaptive_weight_equalises_the_norms_and_has_no_gradient():
    nll, g = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 0.1]])
    weight = adaptive_weight({"kernel": nll}, {"kernel": g}, 0.5)
    assert weight * 0.1 == pytest.approx(0.5 * 5, rel=2e-3)
    assert adaptive_weight(nll, 0 * g, 0.5) == pytest.approx(0.5 * 1e4)
    by_nll, by_g = jax.grad(lambda a, b: adaptive_weight(a, b, 0.5), (0, 1))(nll, g)
    assert not by_nll.any() and not by_g.any()


def test_r1_of_a_quadratic_function():
    images = jnp.array(np.random.default_rng(0).normal(size=(3, 2, 2, 1)), jnp.float32)
    scale = jnp.float32(1.5)

    def penalty(scale):
        return r1_penalty(lambda x: scale * jnp.square(x), images)

    # The gradient of s x^2 is 2 s x.
    squares = float(np.square(images).sum() / 3)
    value, by_scale = jax.value_and_grad(penalty)(scale)
    assert value == pytest.approx(4 * 1.5**2 * squares, rel=1e-6)
    assert by_scale == pytest.approx(8 * 1.5 * squares, rel=1e-6)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"features": 1.5}, {"in_channels": True}])
def test_invalid_discriminator_parameters_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}=.* must be a whole number of at least 1"):
        DiscriminatorParams(**wrong)
