"""Runs that change frameworks half-way, and published weights grafted into a larger architecture."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from flax_vae.adam_state import read_adam_state, write_adam_state
from flax_vae.convert import PRESETS, ConversionError, expand, to_flax, to_torch
from flax_vae.convert.formats.pytorch import to_array
from flax_vae.convert.table.adam import adam_state_in
from flax_vae.convert.table.grafting import graft
from flax_vae.convert.table.rows import flatten
from flax_vae.convert.weights import load_weights, open_weights
from tests.parity.agree import (
    TOLERANCE,
    assert_agree,
    flax_model,
    inputs,
    nchw,
    predict,
    predict_torch,
    quick_jit,
    random_state_dict,
    torch_model,
)
from tests.parity.cases import MODELS
from tests.parity.test_gradients import assert_trees_agree, loss, small_inputs, torch_loss
from torch_ref import adam_state as torch_adam_state

pytestmark = pytest.mark.usefixtures("x64")

# Adam divides a gradient by its own size, so rounding in a tiny one moves a weight more than it should (measured: up to
# 2e-9 of a leaf's RMS after six updates; a run that forgets its moments is 1e-2 away).
PATH_TOLERANCE = 1e-8

RECIPE = {"eps": 1e-8, "weight_decay": 0.01}
PARAMS = replace(MODELS["time"], ch_mult=(1,))


class InTorch:
    def __init__(self, params, state_dict):
        self.model = torch_model(params, state_dict).requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3, betas=(0.9, 0.99), **RECIPE)

    def run(self, steps):
        for step in steps:
            self.optimizer.zero_grad()
            torch_loss(self.model, *(nchw(array) for array in small_inputs(self.model.params, seed=step))).backward()
            self.optimizer.step()

    def weights(self):
        return {key: to_array(tensor).copy() for key, tensor in self.model.state_dict().items()}


class InFlax:
    def __init__(self, params, state_dict):
        self.model, self.tree = flax_model(params, state_dict)
        self.optimizer = optax.chain(optax.clip_by_global_norm(1e9), optax.adamw(1e-3, b1=0.9, b2=0.99, **RECIPE))
        self.state = self.optimizer.init(self.tree)

    def run(self, steps):
        @quick_jit
        def update(tree, state, data):
            gradients = jax.grad(lambda tree: loss(self.model, tree, *data))(tree)
            updates, state = self.optimizer.update(gradients, state, tree)
            return optax.apply_updates(tree, updates), state

        for step in steps:
            self.tree, self.state = update(self.tree, self.state, small_inputs(self.model.params, seed=step))


@pytest.fixture(scope="module")
def straight():
    """The weights after six updates in torch."""
    with jax.enable_x64(True):
        run = InTorch(PARAMS, random_state_dict(PARAMS))
        run.run(range(6))
        return to_flax(run.weights(), PARAMS)


def test_a_run_begun_in_torch_goes_on_in_flax(straight, tmp_path):
    first = InTorch(PARAMS, random_state_dict(PARAMS))
    first.run(range(3))
    content = {"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict()}
    torch.save(content, tmp_path / "step3.pt")
    state = adam_state_in(open_weights(tmp_path / "step3.pt").tensors, PARAMS)
    assert state is not None
    second = InFlax(PARAMS, load_weights(tmp_path / "step3.pt", PARAMS).to("flux"))
    second.state = write_adam_state(second.state, state)
    second.run(range(3, 6))
    assert_trees_agree(second.tree, straight, PATH_TOLERANCE)


def test_a_run_begun_in_flax_goes_on_in_torch(straight):
    first = InFlax(PARAMS, random_state_dict(PARAMS))
    first.run(range(3))
    second = InTorch(PARAMS, to_torch(first.tree, PARAMS))
    torch_adam_state.write_adam_state(second.optimizer, second.model, read_adam_state(first.state))
    second.run(range(3, 6))
    assert_trees_agree(to_flax(second.weights(), PARAMS), straight, PATH_TOLERANCE)


def test_without_the_moments_the_path_is_another(straight):
    first = InTorch(PARAMS, random_state_dict(PARAMS))
    first.run(range(3))
    second = InFlax(PARAMS, first.weights())
    second.run(range(3, 6))
    with pytest.raises(AssertionError, match="differs by"):
        assert_trees_agree(second.tree, straight, 1e4 * PATH_TOLERANCE)


def test_moments_survive_both_ways_bit_for_bit():
    run = InTorch(PARAMS, random_state_dict(PARAMS))
    with pytest.raises(ValueError, match="Adam's state is incomplete"):
        torch_adam_state.read_adam_state(run.optimizer, run.model)
    run.run(range(2))
    moments = torch_adam_state.read_adam_state(run.optimizer, run.model)
    state = write_adam_state(InFlax(PARAMS, run.weights()).state, moments)
    other = InTorch(PARAMS, run.weights())
    torch_adam_state.write_adam_state(other.optimizer, other.model, read_adam_state(state))
    again = torch_adam_state.read_adam_state(other.optimizer, other.model)
    assert again.count == moments.count == 2
    for ours, theirs in zip(again[1:], moments[1:], strict=True):
        for path, leaf in flatten(theirs).items():
            np.testing.assert_array_equal(flatten(ours)[path], leaf)


@pytest.mark.parametrize("name", ["middle attention", "quant convolutions", "batch-normalised latents"])
@pytest.mark.parametrize("time_emb_dim", [None, 6], ids=["without time", "with time"])
def test_a_graft_computes_the_same_and_can_be_trained(name, time_emb_dim):
    params = MODELS[name]
    state_dict = random_state_dict(params)
    images, _, noise = inputs(params, 12 if params.patch == 1 else 8, 20, seed=5)
    expected = predict_torch(torch_model(params, state_dict), images, None, noise)

    weights, grafted = graft(state_dict, params, time_emb_dim=time_emb_dim)
    assert grafted.attn_levels is None
    assert grafted.downsample_padding == params.downsample_padding
    assert len(weights) == len(expand(grafted)) > len(state_dict)
    model, tree = flax_model(grafted, weights)
    time = None if time_emb_dim is None else np.random.default_rng(0).standard_normal((2, time_emb_dim))
    ours = predict(model, tree, images, time, noise)
    theirs = predict_torch(torch_model(grafted, weights), images, time, noise)
    for what, output in ours.items():
        assert_agree(output, expected[what], TOLERANCE["float64"], f"flax {what}")
        assert_agree(theirs[what], expected[what], TOLERANCE["float64"], f"torch {what}")

    gradients = flatten(quick_jit(jax.grad(lambda tree: loss(model, tree, images, time, noise)))(tree))
    for path, gradient in gradients.items():
        if "attn_0/proj_out/kernel" in path or path.endswith("time_mlp/kernel"):
            assert jnp.any(gradient != 0), f"{path} would never move"


def test_grafting_full_size_flux_gives_the_seeds_architecture():
    params = PRESETS["flux1"]
    shapes = {row.theirs: np.broadcast_to(np.zeros((), np.float16), row.torch_shape) for row in expand(params)}
    weights, grafted = graft(shapes, params)
    assert replace(grafted, downsample_padding="symmetric", clamp_logvar=False) == PRESETS["seed-flux"]
    assert len(weights) == 444
    assert {array.dtype for array in weights.values()} == {np.dtype("float16")}


def test_what_cannot_be_grafted_is_refused():
    params = MODELS["time"]
    state_dict = random_state_dict(params)
    with pytest.raises(ConversionError, match="nothing to graft"):
        graft(state_dict, params)
    with pytest.raises(ConversionError, match="already has a time embedding"):
        graft(state_dict, params, time_emb_dim=4)
    with pytest.raises(ConversionError, match="convert them first"):
        graft({}, MODELS["middle attention"])
