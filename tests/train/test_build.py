"""Tests of the initial state: the discriminator of an LDM training checkpoint."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from flax_vae.convert import to_torch
from flax_vae.convert.formats.safetensors import write_tensors
from flax_vae.convert.table.discriminator import discriminator_to_torch
from flax_vae.convert.table.rows import flatten
from flax_vae.discriminator import Discriminator
from flax_vae.train.build import load_start, load_start_discriminator, make_components, make_state
from flax_vae.train.config.schema import GanConfig
from flax_vae.train.devices.parallel import make_parallel
from flax_vae.train.errors import NotFiniteError
from flax_vae.train.loop import _restore_or_create
from flax_vae.train.run.checkpoints import Checkpoints
from tests.flax_vae.random_models import random_params

GAN = GanConfig(weight=0.5, start=1, features=4, layers=1)


@pytest.fixture(scope="module")
def variables():
    """Returns random variables of the discriminator."""
    rng = np.random.default_rng(7)
    shapes = jax.eval_shape(
        lambda: Discriminator(GAN.discriminator).init(jax.random.key(0), np.zeros((1, 16, 16, 3)), train=False)
    )
    draw = lambda leaf: np.asarray(rng.uniform(0.5, 1, leaf.shape) if leaf.ndim else 3, leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, dict(shapes))


@pytest.fixture
def start(small, variables, tmp_path):
    """Returns the config of a run that starts from weights and a discriminator in one file, as LDM writes them."""
    params = random_params(make_components(small).model)
    tensors = to_torch(jax.device_get(params), small.model, layout="ldm")
    path = tmp_path / "ldm.safetensors"
    write_tensors(path, tensors | discriminator_to_torch(variables, GAN.discriminator))
    return replace(small, start_from=str(path), gan=GAN)


def test_discriminator_of_an_ldm_checkpoint_is_loaded(start, variables):
    discriminator = load_start_discriminator(start)
    assert discriminator.note == f"the discriminator starts from {start.start_from} too"
    state = make_state(start, make_components(start), load_start(start), discriminator.variables)
    assert state.discriminator is not None
    found = flatten({"params": state.discriminator.params, "batch_stats": state.discriminator.batch_stats})
    expected = flatten(variables)
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        assert leaf.dtype == expected[path].dtype
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_a_new_run_prints_that_its_discriminator_starts_from_a_file(start, tmp_path):
    notes = []
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = _restore_or_create(checkpoints, 0, start, make_components(start), make_parallel("pmap"), notes)
    assert notes == [f"the discriminator starts from {start.start_from} too"]
    assert state.discriminator is not None
    assert int(flatten(state.discriminator.batch_stats)["main_3/count"]) == 3


def test_discriminator_of_another_architecture_is_not_used(start):
    discriminator = load_start_discriminator(replace(start, gan=replace(GAN, features=8)))
    assert discriminator.variables is None
    assert discriminator.note is not None and "not used" in discriminator.note and "features=8" in discriminator.note


def test_runs_without_discriminator_and_weights_without_one_load_none(start, small, tmp_path):
    assert load_start_discriminator(replace(start, gan=GanConfig())) == (None, None)
    assert load_start_discriminator(replace(start, start_from=None)) == (None, None)
    params = random_params(make_components(small).model)
    write_tensors(tmp_path / "flux.safetensors", to_torch(jax.device_get(params), small.model, layout="ldm"))
    assert load_start_discriminator(replace(start, start_from=str(tmp_path / "flux.safetensors"))) == (None, None)


def test_a_discriminator_that_is_not_finite_is_refused(start, small, variables, tmp_path):
    params = random_params(make_components(small).model)
    tensors = to_torch(jax.device_get(params), small.model, layout="ldm")
    bad = discriminator_to_torch(variables, GAN.discriminator)
    bad["loss.discriminator.main.0.bias"][:] = np.nan
    write_tensors(tmp_path / "nan.safetensors", tensors | bad)
    with pytest.raises(NotFiniteError, match=r"nan\.safetensors"):
        load_start_discriminator(replace(start, start_from=str(tmp_path / "nan.safetensors")))
