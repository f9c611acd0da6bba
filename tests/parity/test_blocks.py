"""Every block, in three precisions, at odd and non-square sizes, batch 2, with random weights throughout."""

from operator import attrgetter

import jax
import numpy as np
import pytest
import torch

import flax_vae
import torch_ref
from tests.parity.agree import (
    TOLERANCE,
    assert_agree,
    assert_as_accurate,
    flax_model,
    nchw,
    nhwc,
    quick_jit,
    random_state_dict,
    torch_model,
)
from tests.parity.cases import BLOCKS, MODELS

pytestmark = pytest.mark.usefixtures("x64")


def run_both(block, dtype):
    """The outputs of one block in both frameworks, for the same input and the same weights."""
    params = MODELS[block.model]
    rng = np.random.default_rng(7)
    arguments = [rng.standard_normal(block.shape)]
    if getattr(getattr(block.flax, "params", block.flax), "time_emb_dim", None):
        arguments.append(rng.standard_normal((block.shape[0], params.time_emb_dim)))
    arguments = [argument.astype(np.float32).astype(dtype) for argument in arguments]

    state_dict = random_state_dict(params, dtype)
    tree = flax_model(params, state_dict)[1]
    for part in flax_path(block.place):
        tree = tree[part]
    jit = quick_jit if dtype == "float64" else jax.jit
    ours = jit(block.flax.apply)({"params": tree}, *arguments)

    twin = torch_model(params, state_dict).get_submodule(block.place)
    if isinstance(twin, torch_ref.DiagonalGaussian):
        twin.sample = False
    with torch.no_grad():
        theirs = twin(*(nchw(argument) for argument in arguments))
    assert type(block.flax).__name__ == type(twin).__name__
    return ours, nhwc(theirs)


def flax_path(place):
    """`encoder.down.0.block.1` as the names of the tree: a number belongs to the list before it."""
    parts = []
    for part in place.split("."):
        parts[-1:] = [f"{parts[-1]}_{part}"] if part.isdigit() else [*parts[-1:], part]
    return parts


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("block", BLOCKS, ids=attrgetter("name"))
def test_block_agrees(request, block, dtype):
    if dtype != "float64":
        request.getfixturevalue("optimised")
    ours, theirs = run_both(block, jax.numpy.dtype(dtype))
    assert ours.dtype == dtype
    assert_agree(ours, theirs, TOLERANCE[dtype], block.name)


@pytest.mark.parametrize("block", BLOCKS, ids=attrgetter("name"))
def test_block_is_as_accurate_in_bfloat16(optimised, block):
    ours, theirs = run_both(block, jax.numpy.dtype("bfloat16"))
    assert ours.dtype == "bfloat16"
    assert_as_accurate(ours, theirs, run_both(block, jax.numpy.dtype("float64"))[1], block.name)


def test_swish_agrees():
    x = np.random.default_rng(0).standard_normal((3, 7)) * 20
    expected = x / (1 + np.exp(-x))
    assert_agree(flax_vae.swish(x), expected, 1e-14)
    assert_agree(flax_vae.Swish().apply({}, x), expected, 1e-14)
    assert_agree(torch_ref.swish(torch.from_numpy(x)), expected, 1e-14)
    assert_agree(torch_ref.Swish()(torch.from_numpy(x)), expected, 1e-14)


def test_every_block_of_the_public_surface_is_covered():
    covered = {type(block.flax).__name__ for block in BLOCKS}
    classes = {name for name in torch_ref.__all__ if isinstance(getattr(torch_ref, name), type)}
    elsewhere = {"AutoEncoder", "AutoEncoderParams", "Posterior", "Swish", "Discriminator", "DiscriminatorParams"}
    elsewhere |= {"TinyAutoEncoder", "TinyAutoEncoderParams"}  # test_tiny_autoencoder.py
    assert classes - covered == elsewhere
