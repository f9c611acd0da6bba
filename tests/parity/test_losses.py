"""Losses of images and latents beside independent computations in PyTorch: values and gradients in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from flax_vae.gaussian import Posterior
from flax_vae.images import ssim as ssim_of_images
from flax_vae.train.losses import (
    add_noise,
    kl,
    reconstruction_loss,
    structural_similarity,
    transform_pair,
    variance_expansion,
)
from tests.parity.agree import assert_agree

pytestmark = pytest.mark.usefixtures("x64")
TOLERANCE = 1e-8


def random(*shape, seed=3):
    return np.random.default_rng(seed).normal(size=shape)


def agree(ours, theirs, *arrays):
    """Compares a scalar of some arrays and its gradients; `theirs` gets the arrays with channels first."""
    value, gradients = jax.value_and_grad(ours, tuple(range(len(arrays))))(*map(jnp.asarray, arrays))
    tensors = [torch.tensor(np.moveaxis(array, 3, 1), requires_grad=True) for array in arrays]
    expected = theirs(*tensors)
    expected.backward()
    assert_agree(value, expected.item(), TOLERANCE)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert_agree(gradient, np.moveaxis(tensor.grad.numpy(), 1, 3), TOLERANCE)


@pytest.mark.parametrize(("size", "turns"), [((2, 2), 0), ((5, 5), 1), ((8, 8), 2), ((3, 6), 3), ((5, 3), -1)])
def test_the_pair_of_eq_is_reduced_and_turned_as_by_pytorch(size, turns):
    images, latents, weights = random(2, 32, 32, 3), random(2, 8, 8, 5), random(1, 8, 8, 1)

    def ours(images, latents):
        x, z = transform_pair(images * weights[:, :1, :1], latents, size, turns)
        return jnp.sum(x**2) + jnp.sum(jnp.sin(z) * jnp.arange(z.size).reshape(z.shape))

    def theirs(images, latents):
        reduced = [
            torch.rot90(F.interpolate(x, side, mode="bilinear", align_corners=False), turns, dims=(2, 3))
            for x, side in ((images * weights[0, 0, 0, 0], (4 * size[0], 4 * size[1])), (latents, size))
        ]
        x, z = (x.permute(0, 2, 3, 1) for x in reduced)
        return (x**2).sum() + (z.sin() * torch.arange(z.numel()).reshape(z.shape)).sum()

    agree(ours, theirs, images, latents)


def test_a_traced_number_of_turns_equals_a_constant_one():
    images, latents = random(1, 8, 8, 3), random(1, 4, 4, 2)
    traced = jax.jit(lambda turns: transform_pair(images, latents, (2, 2), turns))
    for turns in (0, 1, 3, 6):
        for ours, expected in zip(traced(turns), transform_pair(images, latents, (2, 2), turns), strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_what_cannot_be_reduced_is_refused():
    images, latents = random(1, 8, 8, 3), random(1, 4, 4, 2)
    with pytest.raises(ValueError, match=r"size=\(5, 4\) must be between"):
        transform_pair(images, latents, (5, 4))
    with pytest.raises(ValueError, match="not a multiple of latents"):
        transform_pair(images[:, :7], latents, (2, 2))
    with pytest.raises(ValueError, match="needs square images"):
        transform_pair(images, latents, (2, 4), jnp.int32(1))


def test_ssim_equals_the_score():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (2, 16, 19, 3), np.uint8)
    b = np.clip(a + rng.integers(-40, 40, a.shape), 0, 255).astype(np.uint8)
    ours = structural_similarity(*(jnp.asarray(x / 127.5 - 1) for x in (a, b)))
    np.testing.assert_allclose(ours, [ssim_of_images(x, y) for x, y in zip(a, b, strict=True)], rtol=1e-12)


def test_ssim_agrees_with_pytorch():
    def theirs(a, b):
        weights = torch.exp(-0.5 * (torch.arange(-5.0, 6.0, dtype=torch.float64) / 1.5) ** 2)
        window = (weights[:, None] * weights / weights.sum() ** 2).expand(3, 1, 11, 11)
        blur = lambda x: F.conv2d(x, window, groups=3)  # noqa: E731
        a, b = (a + 1) / 2, (b + 1) / 2
        ma, mb = blur(a), blur(b)
        va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
        similarity = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
        return 1 - similarity.mean()

    agree(
        lambda a, b: jnp.mean(1 - structural_similarity(a, b)),
        theirs,
        0.5 * random(2, 13, 12, 3),
        0.4 * random(2, 13, 12, 3, seed=4),
    )
    with pytest.raises(ValueError, match="at least 11 x 11"):
        structural_similarity(jnp.zeros((1, 10, 20, 3)), jnp.zeros((1, 10, 20, 3)))


def test_noise_and_variance_agree_with_pytorch():
    strength, noise = np.array([0.25, 1.0]), random(2, 3, 4, 5)

    def ours(latents, logvar):
        noisy = add_noise(latents, jnp.asarray(noise), jnp.asarray(strength), 0.8)
        return jnp.sum(noisy**2) + variance_expansion(logvar, 0.1)

    def theirs(latents, logvar):
        deviation = 0.8 * torch.tensor(strength).reshape(2, 1, 1, 1)
        noisy = latents + deviation * torch.tensor(np.moveaxis(noise, 3, 1))
        return (noisy**2).sum() + (1 / (logvar.exp() + 0.1)).mean()

    agree(ours, theirs, random(2, 3, 4, 5), 2 * random(2, 3, 4, 5))


@pytest.mark.parametrize("distance", ["l1", "mse", "charbonnier"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_of_the_images_agrees_with_pytorch(distance, reduction):
    logvar = 0.3

    def ours(a, b, mean, spread):
        divergence = kl(Posterior(mean, spread), free_bits=0.2)
        return reconstruction_loss(
            a, b, divergence, distance=distance, kl_weight=0.01, logvar=jnp.float64(logvar), reduction=reduction
        )[0]

    def theirs(a, b, mean, spread):
        difference = a - b
        each = {"l1": difference.abs(), "mse": difference**2, "charbonnier": (difference**2 + 1e-6).sqrt()}[distance]
        nats = (0.5 * (mean**2 + spread.exp() - 1 - spread)).clamp(min=0.2).sum(dim=(1, 2, 3)).mean()
        values = a[0].numel()
        loss = each.mean() / np.exp(logvar) + logvar + 0.01 * nats / values
        return loss * (values if reduction == "sum" else 1)

    shapes = [(2, 4, 4, 3), (2, 4, 4, 3), (2, 2, 2, 4), (2, 2, 2, 4)]
    agree(ours, theirs, *(random(*shape, seed=seed) for seed, shape in enumerate(shapes)))
