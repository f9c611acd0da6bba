"""Tests of the times that conditioned models are trained and evaluated with."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.conditioning import same_time
from flax_vae.convert.table.rows import flatten
from flax_vae.train.build import make_components
from flax_vae.train.conditioning import sample_times
from flax_vae.train.config.schema import DataConfig, OptimConfig, TimeConfig, TrainConfig
from flax_vae.train.state import create_state
from flax_vae.train.step import train_step
from tests.flax_vae.random_models import random_params
from tests.train.conftest import SMALL

BATCH = 4
TIMED = {
    kind: replace(SMALL, ch_mult=(1,), attn_levels=(), time_emb_dim=6, time_embedding=kind)
    for kind in ("linear", "sinusoidal")
}


def times(model, config=TimeConfig(), seed=0, count=BATCH):  # noqa: B008 - frozen
    return sample_times(jax.random.key(seed), jnp.arange(count), model, config)


@pytest.mark.parametrize("kind", TIMED)
def test_each_example_has_a_time_in_the_form_of_the_embedding(kind):
    found = np.asarray(times(TIMED[kind]))
    assert found.shape == ((BATCH, 6) if kind == "linear" else (BATCH,))
    assert len(np.unique(found, axis=0)) == BATCH
    # A time depends only on the key and on the index of the example in the whole batch.
    np.testing.assert_array_equal(np.asarray(times(TIMED[kind], count=2)), found[:2])
    assert not np.any(np.asarray(times(TIMED[kind], seed=1)) == found)


@pytest.mark.parametrize(("sampler", "middle_half"), [("uniform", 0.5), ("logit_normal", 0.728)])
def test_times_follow_the_distribution_of_the_sampler(sampler, middle_half):
    """A logit-normal number lies between 1/4 and 3/4 if its logit is within log 3 = 1.0986 of zero."""
    config = TimeConfig(sampler=sampler, low=-10.0, high=30.0)
    found = np.asarray(times(TIMED["sinusoidal"], config, count=4000))
    assert found.min() >= -10 and found.max() <= 30
    assert found.mean() == pytest.approx(10, abs=1)
    assert np.mean(np.abs(found - 10) < 10) == pytest.approx(middle_half, abs=0.03)


def test_same_time_is_a_sinusoidal_vector_for_linear_embeddings():
    vectors = same_time(2, 2.0, TIMED["linear"])
    angles = 2.0 * 10_000.0 ** (-2 * np.arange(3) / 6)
    np.testing.assert_allclose(np.asarray(vectors), [[*np.cos(angles), *np.sin(angles)]] * 2, rtol=1e-5, atol=1e-6)
    scalars = same_time(2, 2.0, TIMED["sinusoidal"])
    np.testing.assert_array_equal(np.asarray(scalars), [2.0, 2.0])


def test_model_without_time_gets_none():
    assert times(SMALL) is None
    assert same_time(2, None, SMALL) is None


@pytest.mark.parametrize("kind", TIMED)
def test_an_update_changes_all_time_layers(kind):
    config = TrainConfig(
        model=TIMED[kind],
        data=DataConfig(crop_size=16),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.0),
        batch_size=BATCH,
    )
    components = make_components(config)
    before = create_state(components.model, components.optimizer, 0, params=random_params(components.model))
    images = np.random.default_rng(0).uniform(-1, 1, (BATCH, 8, 8, 3)).astype(np.float32)
    # It runs once, so compilation takes most of the time.
    quickly: dict = {"xla_backend_optimization_level": 0}
    step = jax.jit(partial(train_step, components=components, config=config), compiler_options=quickly)
    after, scores = step(before, images, {})
    assert scores["skipped"] == 0 and np.isfinite(scores["loss"])

    old, new = flatten(before.params), flatten(after.params)
    of_time = [path for path in old if "time" in path]
    assert {path.split("/")[0] for path in of_time} == {"encoder", "decoder", "time_embed"}
    assert len(of_time) == 2 * (1 + 7)  # one layer for the model, one in each of its blocks
    gradients = flatten(after.opt_state[1][0].mu)
    for path in of_time:
        assert np.any(gradients[path]) and not np.array_equal(old[path], new[path]), path
