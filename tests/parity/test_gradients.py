"""Gradients of every parameter, and the path that ten steps of AdamW take."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from flax_vae.convert import to_flax
from flax_vae.convert.formats.pytorch import to_array
from tests.parity.agree import (
    TOLERANCE,
    assert_trees_agree,
    flax_model,
    inputs,
    nchw,
    quick_jit,
    random_state_dict,
    torch_model,
)
from tests.parity.cases import MODELS

pytestmark = pytest.mark.usefixtures("x64")

KL_WEIGHT = 1e-3


def loss(model, tree, images, time, noise):
    """Reconstruction plus KL, through a drawn latent."""

    def objective(model):
        posterior = model.posterior(images, time)
        latent = model.encode(images, time, noise=noise)
        return (
            jnp.mean((model.decode(latent, time)[..., :1] - images[..., :1]) ** 2) + KL_WEIGHT * posterior.kl().mean()
        )

    return model.apply({"params": tree}, method=objective)


def small_inputs(params, seed=1):
    """Latents of 2 x 3: float64 convolutions and their gradients are slow on a CPU."""
    f = params.factor // params.patch
    return inputs(params, 2 * f, (3 if params.patch == 1 else 4) * f, seed=seed)


def torch_loss(model, images, time, noise):
    posterior = model.posterior(images, time)
    image = model.decode(model.encode(images, time, noise=noise), time)
    return torch.mean((image[:, :1] - images[:, :1]) ** 2) + KL_WEIGHT * posterior.kl().mean()


def assert_gradients_agree(params, **options):
    """The loss and the gradient of every parameter, ours with these options of the model."""
    state_dict = random_state_dict(params)
    model, tree = flax_model(params, state_dict, **options)
    twin = torch_model(params, state_dict).requires_grad_(True)
    images, time, noise = small_inputs(params)

    value, gradients = quick_jit(jax.value_and_grad(lambda tree: loss(model, tree, images, time, noise)))(tree)
    their_value = torch_loss(twin, nchw(images), nchw(time), nchw(noise))
    their_value.backward()

    assert abs(value - their_value.item()) <= 1e-10 * abs(their_value.item())
    # The table that converts weights converts gradients: every operation in it only moves numbers.
    gradients_of = {key: to_array(weight.grad) for key, weight in twin.named_parameters()}
    gradients_of |= {
        key: np.zeros(buffer.shape) for key, buffer in twin.named_buffers()
    }  # which ours must have as well
    theirs = to_flax(gradients_of, params, "flux")
    assert_trees_agree(gradients, theirs, TOLERANCE["float64"])


@pytest.mark.parametrize(
    ("name", "remat"), [*((name, "none") for name in MODELS), ("time", "blocks"), ("attention everywhere", "attention")]
)
def test_gradients_agree(name, remat):
    assert_gradients_agree(MODELS[name], remat=remat)


@pytest.mark.parametrize("name", ["time", "learnable logvar"])
def test_ten_steps_of_adamw_take_the_same_path(name):
    params = MODELS[name]
    state_dict = random_state_dict(params)
    model, tree = flax_model(params, state_dict)
    twin = torch_model(params, state_dict).requires_grad_(True)
    recipe = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.01}
    optimizer = optax.adamw(1e-3, **recipe)
    their_optimizer = torch.optim.AdamW(
        twin.parameters(), 1e-3, betas=(recipe["b1"], recipe["b2"]), eps=recipe["eps"], weight_decay=0.01
    )
    state = optimizer.init(tree)

    @quick_jit
    def step(tree, state, images, time, noise):
        value, gradients = jax.value_and_grad(lambda tree: loss(model, tree, images, time, noise))(tree)
        updates, state = optimizer.update(gradients, state, tree)
        return optax.apply_updates(tree, updates), state, value

    for count in range(10):
        data = small_inputs(params, seed=count)
        tree, state, value = step(tree, state, *data)
        their_optimizer.zero_grad()
        their_value = torch_loss(twin, *(nchw(array) for array in data))
        their_value.backward()
        their_optimizer.step()
        assert abs(value - their_value.item()) <= 1e-9 * abs(their_value.item()), f"step {count}"
    theirs = to_flax({key: to_array(weight) for key, weight in twin.state_dict().items()}, params, "flux")
    assert_trees_agree(tree, theirs, 1e-8)
