"""Tests of the initial state: the discriminator of an LDM training checkpoint, and Adam's state of PyTorch's."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from flax_vae.adam_state import read_adam_state
from flax_vae.convert import expand, to_torch
from flax_vae.convert.formats.safetensors import write_tensors
from flax_vae.convert.table.discriminator import discriminator_to_torch
from flax_vae.convert.table.rows import flatten
from flax_vae.discriminator import Discriminator
from flax_vae.train.build import StartTraining, load_start, load_start_training, make_components, make_state
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
    beside = load_start_training(start)
    assert beside.notes == (f"the discriminator starts from {start.start_from} too",)
    state = make_state(start, make_components(start), load_start(start), beside.discriminator)
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
    beside = load_start_training(replace(start, gan=replace(GAN, features=8)))
    assert beside.discriminator is None
    assert "not used" in beside.notes[0] and "features=8" in beside.notes[0]


def test_runs_without_discriminator_and_weights_without_one_load_none(start, small, tmp_path):
    assert load_start_training(replace(start, gan=GanConfig())) == StartTraining()
    assert load_start_training(replace(start, start_from=None)) == StartTraining()
    params = random_params(make_components(small).model)
    write_tensors(tmp_path / "flux.safetensors", to_torch(jax.device_get(params), small.model, layout="ldm"))
    assert load_start_training(replace(start, start_from=str(tmp_path / "flux.safetensors"))) == StartTraining()


@pytest.fixture(scope="module")
def checkpoint(small):
    """Returns the tensors of a checkpoint of PyTorch, with random moments after five updates."""
    rng, rows = np.random.default_rng(3), expand(small.model)
    draw = lambda row: rng.uniform(0.5, 1, row.torch_shape).astype(np.float32)  # noqa: E731
    tensors = {f"model.{row.theirs}": draw(row) for row in rows}
    for number, row in enumerate(rows):
        tensors |= {f"optimizer.state.{number}.{moment}": draw(row) for moment in ("exp_avg", "exp_avg_sq")}
        tensors[f"optimizer.state.{number}.step"] = np.float32(5)
    return tensors


@pytest.mark.parametrize("trainable", ["all", "decoder"])
def test_adams_state_of_a_checkpoint_of_pytorch_is_loaded(small, checkpoint, trainable, tmp_path):
    write_tensors(tmp_path / "torch.safetensors", checkpoint)
    loss = replace(small.loss, learn_logvar=True)
    config = replace(small, start_from=str(tmp_path / "torch.safetensors"), trainable=trainable, loss=loss)
    notes = []
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = _restore_or_create(checkpoints, 0, config, make_components(config), make_parallel("pmap"), notes)
    assert notes == [f"Adam's state after 5 updates starts from {config.start_from} too"]
    count, mu, nu = read_adam_state(state.opt_state)
    assert count == 5
    counts = [leaf for path, leaf in jax.tree.leaves_with_path(state.opt_state) if "count" in str(path[-1])]
    assert sorted(map(int, counts)) == [0, 5]  # the schedule begins
    assert mu.pop("logvar") == nu.pop("logvar") == 0
    for moments, name in ((mu, "exp_avg"), (nu, "exp_avg_sq")):
        rows = [(number, row) for number, row in enumerate(expand(small.model)) if row.ours in flatten(moments)]
        assert any(row.ours.startswith("encoder/") for _, row in rows) == (trainable == "all")
        assert len(rows) == len(jax.tree.leaves(moments))
        for number, row in rows:
            np.testing.assert_array_equal(
                row.op.to_flax(checkpoint[f"optimizer.state.{number}.{name}"]), flatten(moments)[row.ours]
            )


@pytest.mark.parametrize("fault", ["missing", "updates", "shape", "no moments"])
def test_adams_state_that_does_not_fit_is_not_used(small, checkpoint, fault, tmp_path):
    changed = {
        "missing": {"optimizer.state.7.exp_avg": None},
        "updates": {"optimizer.state.7.step": np.float32(6)},
        "shape": {"optimizer.state.0.exp_avg": np.zeros((2, 2), np.float32)},
        "no moments": {name: None for name in checkpoint if "exp_avg" in name},
    }[fault]
    tensors = {name: array for name, array in (checkpoint | changed).items() if array is not None}
    write_tensors(tmp_path / "torch.safetensors", tensors)
    beside = load_start_training(replace(small, start_from=str(tmp_path / "torch.safetensors")))
    assert beside.adam is None
    assert beside.notes[0].startswith(f"Adam's state in {tmp_path / 'torch.safetensors'} is not used: ")


def test_a_discriminator_that_is_not_finite_is_refused(start, small, variables, tmp_path):
    params = random_params(make_components(small).model)
    tensors = to_torch(jax.device_get(params), small.model, layout="ldm")
    bad = discriminator_to_torch(variables, GAN.discriminator)
    bad["loss.discriminator.main.0.bias"][:] = np.nan
    write_tensors(tmp_path / "nan.safetensors", tensors | bad)
    with pytest.raises(NotFiniteError, match=r"nan\.safetensors"):
        load_start_training(replace(start, start_from=str(tmp_path / "nan.safetensors")))
