import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae import Posterior
from train.config import LossConfig
from train.losses import kl, l1, reconstruction_loss


def test_values_are_those_of_the_formulas():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
    mean, logvar = rng.normal(size=(2, 3, 2, 2, 5)).astype(np.float32)
    posterior = Posterior(jnp.array(mean), jnp.array(logvar))

    distance = np.abs(x - y).mean()
    nats = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum() / 3
    assert l1(jnp.array(x), jnp.array(y)) == pytest.approx(distance, rel=1e-6)
    assert kl(posterior) == pytest.approx(nats, rel=1e-6)

    loss, terms = reconstruction_loss(jnp.array(x), jnp.array(y), posterior, LossConfig(kl_weight=0.1))
    assert loss == pytest.approx(distance + 0.1 * nats / (4 * 4 * 3), rel=1e-6)
    assert terms["loss"] == loss
    # LDM sums over the image and divides by the batch: the same, times the numbers in an image.
    assert loss * 48 == pytest.approx(np.abs(x - y).sum() / 3 + 0.1 * nats, rel=1e-6)


def test_the_standard_normal_has_no_divergence():
    assert kl(Posterior(jnp.zeros((2, 1, 1, 3)), jnp.zeros((2, 1, 1, 3)))) == 0
