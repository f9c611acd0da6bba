"""The adversarial formulas beside PyTorch's own: values and gradients, and R1's, which are of second order."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from flax_vae.convert.formats.pytorch import to_array
from flax_vae.convert.table.discriminator import discriminator_to_flax
from flax_vae.convert.table.rows import flatten
from flax_vae.train.losses import adversarial
from tests.parity.agree import TOLERANCE, assert_agree, nchw, quick_jit
from tests.parity.discriminators import SMALL, random_images, twins

pytestmark = pytest.mark.usefixtures("x64")


@cache
def logits():
    return np.random.default_rng(5).normal(size=(2, 2, 3, 4, 1)) * 2


THEIRS = {
    "hinge_d": lambda real, fake: (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2,
    "hinge_g": lambda real, fake: -fake.mean(),
    "non_saturating_d": lambda real, fake: (
        (
            F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
            + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        )
        / 2
    ),
    "non_saturating_g": lambda real, fake: F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake)),
}


@pytest.mark.parametrize("name", THEIRS)
def test_losses_and_their_gradients_agree(name):
    real, fake = logits()

    def ours(real, fake):
        loss = getattr(adversarial, name)
        return loss(real, fake) if name.endswith("_d") else loss(fake)

    value, gradients = jax.value_and_grad(ours, (0, 1))(jnp.asarray(real), jnp.asarray(fake))
    tensors = [torch.tensor(array, requires_grad=True) for array in (real, fake)]
    expected = THEIRS[name](*tensors)
    expected.backward()
    assert_agree(value, expected.item(), 1e-12)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert_agree(gradient, np.zeros(real.shape) if tensor.grad is None else tensor.grad.numpy(), 1e-12)


@pytest.mark.parametrize(("nll", "g"), [(1.0, 1.0), (3.0, 1e-5), (1e3, 1e-6), (0.0, 1.0)])
def test_the_adaptive_weight_is_ldms(nll, g):
    nll_grad, g_grad = logits() * np.array([nll, g])[:, None, None, None, None]
    norms = [torch.linalg.vector_norm(torch.tensor(array)) for array in (nll_grad, g_grad)]
    expected = 0.5 * torch.clamp(norms[0] / (norms[1] + 1e-4), 0.0, 1e4)
    assert_agree(adversarial.adaptive_weight(nll_grad, g_grad, 0.5), expected.item(), 1e-12)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_r1_and_its_gradients_agree(train):
    model, variables, twin = twins(SMALL)
    images = random_images(SMALL)

    @quick_jit
    @jax.value_and_grad
    def ours(weights):
        variables_in = {**variables, "params": weights}
        return adversarial.r1_penalty(lambda images: model.apply(variables_in, images, train), images)

    value, gradients = ours(variables["params"])
    inputs = nchw(images).requires_grad_(True)
    (slopes,) = torch.autograd.grad(twin.train(train)(inputs).sum(), inputs, create_graph=True)
    expected = slopes.square().sum((1, 2, 3)).mean()
    expected.backward()
    assert_agree(value, expected.item(), TOLERANCE["float64"])
    state_dict = {key: to_array(tensor) for key, tensor in twin.state_dict().items()}
    state_dict |= {
        key: np.zeros(weight.shape) if weight.grad is None else to_array(weight.grad)
        for key, weight in twin.named_parameters()
    }
    theirs = flatten(discriminator_to_flax(state_dict, SMALL, prefix="")["params"])
    for path, leaf in flatten(gradients).items():
        assert_agree(leaf, theirs[path], TOLERANCE["float64"], path)
