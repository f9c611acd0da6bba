"""Regularisers of the latents in the step and in a run."""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.convert import FlaxVaeError
from flax_vae.convert.weights import read_config, write_config
from flax_vae.train.build import make_components, make_state
from flax_vae.train.config import DataConfig, GanConfig, LatentConfig, LossConfig, OptimConfig, TrainConfig
from flax_vae.train.gradients import gradients
from flax_vae.train.loop import train
from flax_vae.train.losses import QUARTERS, transform_pair
from flax_vae.train.step import drawn_size, train_step
from tests.flax_vae.random_models import QUICKLY
from tests.train.conftest import SMALL

ALL = LatentConfig(equivariance=0.5, noise=0.5, variance_weight=0.1)
CONFIG = TrainConfig(
    model=replace(SMALL, ch_mult=(1,), attn_levels=()),
    data=DataConfig(crop_size=16),
    loss=LossConfig("mse", kl_weight=0, sample=False),
    latents=LatentConfig(equivariance=0.5),
    batch_size=2,
)
IMAGES = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1)


def step_of(config):
    components = make_components(config)
    return partial(train_step, components=components, config=config), jax.eval_shape(
        partial(make_state, config, components)
    )


def test_an_update_that_reduces_nothing_is_that_of_a_run_without_regularisers():
    programs = [
        str(jax.make_jaxpr(step)(state, IMAGES, {}))
        for step, state in map(step_of, (CONFIG, replace(CONFIG, latents=LatentConfig())))
    ]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("weight", [None, 0.5])
def test_an_update_compares_the_decoded_latents_with_images_that_are_turned_alike(weight):
    config = replace(CONFIG, latents=replace(CONFIG.latents, equivariance_weight=weight))
    components = make_components(config)
    state = make_state(config, components)
    apply: Any = components.model.apply

    def distance(params, target, z):
        z = apply({"params": params}, z, method="scale")
        return jnp.mean((apply({"params": params}, z, method="decode") - target) ** 2)

    def expected(params, turns):
        z = apply({"params": params}, IMAGES, method="posterior").mode()
        reduced = distance(params, *transform_pair(IMAGES, z, (4, 4), turns))
        return reduced if weight is None else distance(params, IMAGES, z) + weight * reduced

    value = jax.jit(jax.value_and_grad(expected), compiler_options=QUICKLY)
    every = [value(state.params, jnp.int32(turns)) for turns in range(QUARTERS)]
    compute = jax.jit(
        lambda state: gradients(
            state, None, IMAGES, jnp.arange(2), {},
            model=components.model, discriminator=None, config=config, average=lambda tree: tree, size=4,
        ),
        compiler_options=QUICKLY,
    )  # fmt: skip
    drawn = set()
    for number in range(8):
        found = compute(replace(state, step=jnp.int32(number)))
        equal = [turns for turns, (loss, _) in enumerate(every) if np.isclose(loss, found.scores["loss"], rtol=1e-5)]
        assert len(equal) == 1  # the four losses differ
        drawn |= set(equal)
        for ours, theirs in zip(jax.tree.leaves(found.autoencoder), jax.tree.leaves(every[equal[0]][1]), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    assert len(drawn) >= 3


def test_sizes_are_drawn_with_their_probability_from_seed_and_step_alone():
    draws = [drawn_size(CONFIG, step) for step in range(2000)]
    assert draws == [drawn_size(CONFIG, step) for step in range(2000)]
    assert draws != [drawn_size(replace(CONFIG, seed=1), step) for step in range(2000)]
    counts = Counter(draws)
    assert set(counts) == {None, 4, 8, 12}
    assert abs(counts[None] - 1000) < 100 and all(abs(counts[size] - 333) < 80 for size in (4, 8, 12))
    assert drawn_size(replace(CONFIG, latents=LatentConfig()), 0) is None
    assert None not in {drawn_size(replace(CONFIG, latents=LatentConfig(1.0)), step) for step in range(100)}


@pytest.mark.slow
def test_a_resumed_run_ends_with_equal_weights(small, tmp_path, capsys):
    config = replace(
        small,
        model=replace(small.model, ch_mult=(1,), attn_levels=()),
        data=replace(small.data, crop_size=8),
        optim=OptimConfig(schedule="constant", warmup_steps=0),
        latents=ALL,
        batch_size=2,
        steps=6,
        save_every=3,
    )
    halves = [[drawn_size(config, step) for step in steps] for steps in (range(3), range(3, 6))]
    assert all(None in half and len(set(half)) > 1 for half in halves)
    whole = train(config, tmp_path / "whole").state
    train(replace(config, steps=3), tmp_path / "halves")
    resumed = train(config, tmp_path / "halves").state
    for (path, ours), theirs in zip(jax.tree.leaves_with_path(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=jax.tree_util.keystr(path))

    # What was measured and written into the export survives another call, which exports again.
    measured = replace(config.model, latent_mean=(0.5,) * 4, latent_std=(2.0,) * 4, scale_factor=1.0, shift_factor=0.0)
    write_config(tmp_path / "whole" / "export", measured)
    train(config, tmp_path / "whole")
    assert read_config(tmp_path / "whole" / "export" / "config.json") == measured
    assert f"{tmp_path / 'whole' / 'export'}: scale, shift and statistics" in capsys.readouterr().out


@pytest.mark.parametrize(("size", "weight"), [(None, None), (4, None), (4, 3.0)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_penalties_of_the_posterior_weigh_alike_in_all_updates(size, weight, reduction):
    config = replace(
        CONFIG,
        loss=LossConfig("mse", kl_weight=2.0, sample=False, reduction=reduction),
        latents=LatentConfig(equivariance=0.5, equivariance_weight=weight, variance_weight=0.5),
    )
    components = make_components(config)

    def scores_of(state):
        settings = {"model": components.model, "discriminator": None, "config": config, "average": lambda tree: tree}
        return gradients(state, None, IMAGES, jnp.arange(2), {}, size=size, **settings).scores

    scores = jax.jit(scores_of, compiler_options=QUICKLY)(make_state(config, components))
    values = IMAGES[0].size
    expected = scores["mse"] + 2.0 * scores["kl"] / values + 0.5 * scores["variance_expansion"]
    if weight is not None:
        expected += weight * scores["equivariance"] / (values if reduction == "sum" else 1)
    np.testing.assert_allclose(scores["loss"], expected * (values if reduction == "sum" else 1), rtol=1e-5)


def test_the_discriminator_sees_whole_images_when_the_loss_of_reduced_latents_is_added():
    gan = GanConfig(weight=0.5, start=0, features=32, layers=1)
    latents = LatentConfig(equivariance=1.0, equivariance_weight=1e-6)
    config = replace(CONFIG, gan=gan, latents=latents, data=DataConfig(crop_size=24))
    components = make_components(config)
    state = make_state(config, components)

    @partial(jax.jit, static_argnums=1, compiler_options=QUICKLY)
    def found(state, size):
        batch_stats, index = state.discriminator.batch_stats, jnp.arange(2)
        return gradients(
            state, batch_stats, IMAGES, index, {}, model=components.model, discriminator=components.discriminator,
            config=config, average=lambda tree: tree, size=size,
        )  # fmt: skip

    both, whole = found(state, 4), found(state, None)
    assert both.scores["equivariance"] > 0.01 and float(both.scores["d_weight"]) > 0
    assert set(both.scores) == {*whole.scores, "equivariance"}
    for name, score in whole.scores.items():
        np.testing.assert_allclose(both.scores[name], score, rtol=1e-4, err_msg=name)
    for ours, theirs in zip(jax.tree.leaves(both.autoencoder), jax.tree.leaves(whole.autoencoder), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-5)


def test_variance_expansion_without_a_trained_encoder_is_refused():
    with pytest.raises(FlaxVaeError, match="concerns the encoder, which trainable='decoder' leaves as it is"):
        replace(CONFIG, latents=LatentConfig(variance_weight=0.1), trainable="decoder", start_from="model")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (LossConfig(ssim_weight=0.5), "reduced to 4 by .* too small for loss.ssim_weight=0.5, which needs 11 pixels"),
        (LossConfig(lpips_weight=1.0), "too small for lpips_net='vgg', which needs 16 pixels; use no equivariance, no"),
    ],
)
def test_losses_that_cannot_take_reduced_images_are_refused(loss, message):
    with pytest.raises(FlaxVaeError, match=message):
        make_components(replace(CONFIG, loss=loss))
    make_components(replace(CONFIG, loss=loss, latents=LatentConfig()))
