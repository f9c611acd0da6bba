"""All ways to run the step agree: pmap and mesh, one and two devices, in parts, with sharded states."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from flax_vae.train.build import make_components, make_state
from flax_vae.train.config.schema import DataConfig, GanConfig, LatentConfig, LossConfig, OptimConfig, TrainConfig
from flax_vae.train.devices.parallel import make_parallel
from flax_vae.train.errors import TrainError
from flax_vae.train.gradients import example_noise
from flax_vae.train.step import train_step
from tests.train.conftest import SMALL

STEPS = 3
MODEL = replace(SMALL, ch_mult=(1,))
GAN = GanConfig(weight=0.5, start=1, features=8, layers=1)


def run(
    mode,
    devices,
    sample=True,
    *,
    gan=GanConfig(),  # noqa: B008 - frozen
    latents=LatentConfig(),  # noqa: B008 - frozen
    size=None,
    accumulate=1,
    zero=False,
    rows=1,  # noqa: B008 - frozen
):
    """Runs three updates with all optional state of the autoencoder; returns the final state and all scores."""
    config = TrainConfig(
        model=MODEL,
        data=DataConfig(crop_size=16),
        loss=LossConfig(kl_weight=1e-2, sample=sample, learn_logvar=True),
        optim=OptimConfig(accumulate=accumulate, ema_decay=0.9),
        gan=gan,
        latents=latents,
        batch_size=4,
        parallel=mode,
        zero=zero,
        devices_per_image=rows,
    )
    parallel = make_parallel(mode, zero=zero, devices_per_image=rows, devices=jax.local_devices()[:devices])
    # Plain gradient descent; Adam's first updates are signs, which would amplify rounding.
    descent = optax.sgd(0.1, momentum=0.9)
    components = replace(make_components(config), optimizer=descent, schedule=optax.constant_schedule(0.1))
    if gan.weight:
        components = replace(components, d_optimizer=descent)
    traced = []

    def counted(state, batch, constants, axis_name=None):
        traced.append(batch.shape)
        return train_step(state, batch, constants, components=components, config=config, axis_name=axis_name, size=size)

    step = parallel.compile(counted)
    state = parallel.place_state(make_state(config, components))
    images = np.random.default_rng(0).uniform(-1, 1, (STEPS, 4, 16, 16, 3)).astype(np.float32)
    history = []
    with jax.transfer_guard("disallow"):
        for batch in images:
            state, scores = step(state, parallel.place_batch(batch), {})
            history.append(jax.device_get(scores))
    assert len(traced) == 1  # compiled once
    return state, history


@pytest.fixture(scope="module")
def runs():
    cases = [("pmap", 1, True), ("pmap", 2, True), ("mesh", 2, True), ("pmap", 2, False), ("mesh", 2, False)]
    return {case: run(*case) for case in cases}


@pytest.fixture(scope="module")
def adversarial_runs():
    """Returns runs with a discriminator, which is active from the second update."""
    return {
        "one device": run("pmap", 1, gan=GAN),
        "pmap": run("pmap", 2, gan=GAN),
        "zero": run("mesh", 2, gan=GAN, zero=True),
    }


def assert_scores_alike(one, other):
    for ours, theirs in zip(one[1], other[1], strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)


def assert_alike(one, other):
    """Checks that scores and weights agree to float32 rounding."""
    assert_scores_alike(one, other)
    for ours, theirs in zip(jax.tree.leaves(one[0].params), jax.tree.leaves(other[0].params), strict=True):
        np.testing.assert_allclose(jax.device_get(ours), jax.device_get(theirs), rtol=1e-4, atol=1e-6)


def test_pmap_equals_mesh_without_noise(runs):
    assert_alike(runs["pmap", 2, False], runs["mesh", 2, False])


def test_pmap_equals_mesh_and_one_device_with_noise(runs):
    assert_alike(runs["pmap", 2, True], runs["mesh", 2, True])
    assert_alike(runs["pmap", 2, True], runs["pmap", 1, True])


@pytest.mark.parametrize("how", ["pmap", "zero"])
def test_adversarial_training_is_equal_on_any_devices(adversarial_runs, how):
    one, other = adversarial_runs[how], adversarial_runs["one device"]
    assert_scores_alike(one, other)
    for ours, theirs in zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0]), strict=True):
        ours, theirs = jax.device_get(ours), jax.device_get(theirs)
        size = np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))
        # The gradient of a bias before a norm is pure rounding.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * size + 1e-7)


def test_discriminator_is_unchanged_until_it_is_active(adversarial_runs, runs):
    (first, second, _), plain = adversarial_runs["pmap"][1], runs["pmap", 2, True][1]
    assert first["d_weight"] == first["d_loss"] == first["d_grad_norm"] == 0
    assert first["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-5)
    assert second["d_weight"] > 0
    assert second["d_grad_norm"] > 0
    counts = [
        leaf
        for leaf in jax.tree.leaves(adversarial_runs["pmap"][0].discriminator.batch_stats)
        if leaf.dtype == np.int32
    ]
    assert [int(count) for count in counts] == [6]  # two updates with three passes each


def test_zero_shards_optimiser_states_and_average(adversarial_runs):
    state = adversarial_runs["zero"][0]
    sharded = [state.opt_state, state.ema, state.discriminator.opt_state]
    assert all(not leaf.is_fully_replicated for leaf in jax.tree.leaves(sharded) if leaf.ndim == 4 and leaf.size > 500)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params))
    parallel = make_parallel("mesh", zero=True, devices=jax.local_devices()[:2])
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(parallel.gather(state.ema)))


def test_accumulation_gives_an_equal_update(runs):
    assert_alike(run("mesh", 2, accumulate=2), runs["mesh", 2, True])


def test_adaptive_weight_with_accumulation_is_equal_on_any_devices():
    pmap, mesh = (run(mode, 2, gan=replace(GAN, start=0), accumulate=2) for mode in ("pmap", "mesh"))
    assert all(scores["d_weight"] > 0 for scores in mesh[1])
    assert_alike(pmap, mesh)


def test_two_devices_per_image_give_an_equal_update(runs):
    assert_alike(run("mesh", 2, rows=2), runs["pmap", 1, True])


def test_regularised_latents_give_an_equal_update_on_any_devices():
    """Also for 9 rows of latents in two parts, and where the turn moves rows between two devices of an image."""
    latents = {"latents": LatentConfig(equivariance=0.5, noise=0.5, variance_weight=0.1), "size": 12}
    one = run("pmap", 1, **latents)
    assert_alike(run("pmap", 2, accumulate=2, **latents), one)
    assert_alike(run("mesh", 2, rows=2, **latents), one)


def test_noise_changes_the_loss(runs):
    assert runs["pmap", 2, True][1][0]["loss"] != runs["pmap", 2, False][1][0]["loss"]


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_states_of_all_devices_are_equal_bit_for_bit(runs, mode):
    state, _ = runs[mode, 2, True]
    for leaf in jax.tree.leaves(state):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 2
        assert copies[0].shape == leaf.shape
        np.testing.assert_array_equal(copies[0], copies[1])


def test_noise_of_an_example_does_not_depend_on_the_device():
    key = jax.random.key(0)
    whole = np.asarray(example_noise(key, np.arange(4), np.zeros((4, 2, 2, 3), np.float32)))
    second_half = np.asarray(example_noise(key, np.arange(2, 4), np.zeros((2, 2, 2, 3), np.float32)))
    np.testing.assert_array_equal(whole[2:], second_half)
    assert len({example.tobytes() for example in whole}) == 4
    assert abs(np.asarray(example_noise(key, np.arange(64), np.zeros((64, 8, 8, 4), np.float32))).std() - 1) < 0.02


def test_devices_draw_different_noise_inside_pmap():
    def draw(like):
        first = like.shape[0] * jax.lax.axis_index("data")
        return example_noise(jax.random.key(0), first + jax.numpy.arange(like.shape[0]), like)

    noise = np.asarray(jax.pmap(draw, axis_name="data")(np.zeros((2, 2, 2, 2, 3), np.float32)))
    assert len({example.tobytes() for example in noise.reshape(4, -1)}) == 4


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_arrays_on_the_host_are_refused_inside_the_loop(mode):
    parallel = make_parallel(mode)
    step = parallel.compile(lambda state, batch, constants, axis_name=None: (state, batch.sum()))
    state = parallel.place_state(np.float32(0))
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed host-to-device"):
        step(state, np.zeros((2, 1), np.float32), {})


def test_an_indivisible_batch_size_is_refused():
    with pytest.raises(TrainError, match="batch_size=3 cannot be shared evenly by 2 devices; use a multiple of 2"):
        make_parallel("pmap").check_batch_size(3)
    with pytest.raises(TrainError, match="batch_size=6 .* by 2 devices in accumulate=2 parts; use a multiple of 4"):
        make_parallel("pmap").check_batch_size(6, 2)
