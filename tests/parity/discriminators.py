"""Discriminators of both frameworks that hold the same random weights, by the shipped converter."""

import jax
import jax.numpy as jnp
import numpy as np

import flax_vae.discriminator
import torch_ref.discriminator
from flax_vae.convert.architecture.discriminator import DiscriminatorParams
from flax_vae.convert.table.discriminator import discriminator_to_flax
from torch_ref.loading import to_tensor

SMALL = DiscriminatorParams(in_channels=3, features=6, layers=2)
DEEP = DiscriminatorParams(in_channels=1, features=2, layers=4)  # its last two widths are equal
TINY = DiscriminatorParams(in_channels=1, features=2, layers=1)
HEIGHT, WIDTH = 19, 26


def random_state_dict(params, dtype="float64", prefix="", seed=3):
    rng = np.random.default_rng(seed)
    state_dict = {}
    for key, tensor in torch_ref.discriminator.Discriminator(params).state_dict().items():
        numbers = rng.standard_normal(tensor.shape)
        if key.endswith("num_batches_tracked"):
            state_dict[prefix + key] = np.array(7, np.int64)
            continue
        if tensor.ndim == 4:
            numbers *= np.prod(tensor.shape[1:]) ** -0.5
        elif key.endswith("running_var"):
            numbers = np.abs(numbers) + 0.2
        elif key.endswith(".weight"):
            numbers = 1 + 0.2 * numbers
        else:
            numbers = 0.2 * numbers
        state_dict[prefix + key] = numbers.astype(np.float32).astype(dtype)
    return state_dict


def random_images(params, dtype="float64", count=2, seed=4):
    side = params.smallest
    shape = (count, max(side, HEIGHT), max(side + 1, WIDTH), params.in_channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32).astype(dtype)


def twins(params, dtype="float64"):
    """The Flax model, its variables by the shipped converter, and the torch model."""
    state_dict = random_state_dict(params, dtype)
    variables = jax.tree.map(jnp.asarray, discriminator_to_flax(state_dict, params, prefix=""))
    twin = torch_ref.discriminator.Discriminator(params)
    twin.load_state_dict({key: to_tensor(array) for key, array in state_dict.items()}, strict=True, assign=True)
    twin.requires_grad_(True)
    return flax_vae.discriminator.Discriminator(params, param_dtype=dtype), variables, twin
