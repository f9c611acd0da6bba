import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae import Posterior
from flax_vae.train.losses.reconstruction import kl, l1, reconstruction_loss

rng = np.random.default_rng(0)


def test_losses_equal_their_formulas():
    x, y = rng.normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
    mean, logvar = rng.normal(size=(2, 3, 2, 2, 5)).astype(np.float32)
    posterior = Posterior(jnp.array(mean), jnp.array(logvar))

    distance = np.abs(x - y).mean()
    nats = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum() / 3
    assert l1(jnp.array(x), jnp.array(y)) == pytest.approx(distance, rel=1e-6)
    assert kl(posterior) == pytest.approx(nats, rel=1e-6)

    divergence = kl(posterior)
    loss, terms = reconstruction_loss(jnp.array(x), jnp.array(y), divergence, kl_weight=0.1)
    assert loss == pytest.approx(distance + 0.1 * nats / (4 * 4 * 3), rel=1e-6)
    assert terms["loss"] == loss
    # LDM sums over the image and averages over the batch, which multiplies by the number of values of an image.
    summed, _ = reconstruction_loss(jnp.array(x), jnp.array(y), divergence, kl_weight=0.1, reduction="sum")
    assert summed == pytest.approx(np.abs(x - y).sum() / 3 + 0.1 * nats, rel=1e-6)


def test_each_distance_is_logged_under_its_name():
    x, y = jnp.array(rng.normal(size=(2, 2, 4, 4, 3)), jnp.float32)
    expected = {"l1": np.abs(x - y), "mse": (x - y) ** 2, "charbonnier": np.sqrt((x - y) ** 2 + 1e-6)}
    for name, each in expected.items():
        loss, terms = reconstruction_loss(x, y, jnp.float32(3), distance=name, kl_weight=0)
        assert loss == pytest.approx(float(each.mean()), rel=1e-5)
        assert {name: float(term) for name, term in terms.items()} == {"loss": loss, name: loss, "kl": 3}


def test_perceptual_distance_is_added_before_the_variance_divides():
    x, y = jnp.array(rng.normal(size=(2, 2, 4, 4, 3)), jnp.float32)
    perceptual = lambda a, b: jnp.array([0.25, 0.75])  # noqa: E731
    loss, terms = reconstruction_loss(
        x, y, jnp.float32(0), perceptual=perceptual, lpips_weight=0.5, logvar=jnp.float32(0.3)
    )
    expected = (np.abs(x - y).mean() + 0.5 * 0.5) / np.exp(0.3) + 0.3
    assert loss == pytest.approx(expected, rel=1e-6)
    assert terms["lpips"] == 0.5
    with pytest.raises(ValueError, match="lpips_weight=0.5 needs a perceptual distance"):
        reconstruction_loss(x, y, jnp.float32(0), lpips_weight=0.5)
    with pytest.raises(ValueError, match="distance='l2' must be one of l1, mse, charbonnier"):
        reconstruction_loss(x, y, jnp.float32(0), distance="l2")


def test_free_bits_have_no_gradient():
    mean = jnp.array([0.0, 0.1, 2.0], jnp.float32).reshape(1, 1, 1, 3)
    free = lambda mean: kl(Posterior(mean, jnp.zeros_like(mean)), free_bits=0.5)  # noqa: E731
    assert free(mean) == pytest.approx(0.5 + 0.5 + 2.0, rel=1e-6)
    np.testing.assert_allclose(jax.grad(free)(mean).ravel(), [0, 0, 2.0])


def test_standard_normal_has_zero_divergence():
    assert kl(Posterior(jnp.zeros((2, 1, 1, 3)), jnp.zeros((2, 1, 1, 3)))) == 0
