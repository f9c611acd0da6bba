"""The distance in the features of a network that the user gives, alone and in a run's step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.train.build import make_constants
from flax_vae.train.config import LossConfig
from flax_vae.train.errors import RunError
from flax_vae.train.losses import feature_distance, reconstruction_loss

A, B = (jax.random.uniform(jax.random.key(seed), (2, 6, 6, 3), minval=-1) for seed in (0, 1))
KERNEL = jax.random.normal(jax.random.key(2), (3, 5))


def network(kernel, images):
    """A map of each pixel, and one vector of each image."""
    x = images @ kernel
    return [x, x.mean((1, 2))]


FEATURES = jax.tree_util.Partial(network, KERNEL)


def test_it_is_the_squared_distance_of_unit_vectors():
    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    maps = zip(network(KERNEL, A), network(KERNEL, B), strict=True)
    pixels, vectors = ([np.asarray(x, np.float64) for x in pair] for pair in maps)
    expected = ((unit(pixels[0]) - unit(pixels[1])) ** 2).sum(-1).mean((1, 2))
    expected += ((unit(vectors[0]) - unit(vectors[1])) ** 2).sum(-1)
    np.testing.assert_allclose(feature_distance(FEATURES, A, B), expected, rtol=1e-5)
    np.testing.assert_array_equal(feature_distance(FEATURES, A, A), 0)


def test_where_all_features_are_zero_the_gradient_is_finite():
    gradient = jax.grad(lambda a: feature_distance(lambda x: [jax.nn.relu(x)], a, B).sum())(-jnp.abs(A))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("features", "found"), [(lambda x: x, "ArrayImpl"), (lambda x: [x.mean()], r"\[\(\)\]"), (lambda x: [], r"\[\]")]
)
def test_what_is_no_list_of_maps_is_refused(features, found):
    with pytest.raises(ValueError, match=f"{found}; expected a list of arrays with 2 first"):
        feature_distance(features, A, B)


def test_the_loss_of_a_run_takes_it_with_its_arrays_as_arguments():
    config = LossConfig(features_weight=0.5)
    constants = make_constants(config, FEATURES)
    assert [leaf.shape for leaf in jax.tree.leaves(constants)] == [(3, 5)]

    @jax.jit
    def loss(constants):
        weight = {"features": constants["features"], "features_weight": config.features_weight}
        return reconstruction_loss(A, B, jnp.float32(0), **weight)

    value, terms = loss(constants)
    np.testing.assert_allclose(value, terms["l1"] + 0.5 * terms["features"], rtol=1e-6)
    np.testing.assert_allclose(terms["features"], feature_distance(FEATURES, A, B).mean(), rtol=1e-6)


def test_a_network_and_its_weight_come_together():
    with pytest.raises(RunError, match="features_weight is 0.5, and no network is given; pass features to"):
        make_constants(LossConfig(features_weight=0.5))
    with pytest.raises(RunError, match="features_weight is 0.0, and a network is given; set it"):
        make_constants(LossConfig(), FEATURES)
    with pytest.raises(ValueError, match="needs a network; pass features"):
        reconstruction_loss(A, B, jnp.float32(0), features_weight=1.0)
