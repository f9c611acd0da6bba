"""Gradients in half precision are summed in float32, on every platform."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae import AutoEncoder, init_params
from flax_vae.convert.architecture.discriminator import DiscriminatorParams
from flax_vae.discriminator import Discriminator
from flax_vae.ops.broadcasting import broadcast
from flax_vae.ops.linear import Conv, Dense
from flax_vae.train.losses.perceptual import Lpips, Stage
from tests.flax_vae.random_models import PLAIN

HALF = ("bfloat16", "float16")

# A sum as StableHLO writes it: `stablehlo.reduce(%3 init: %4) applies stablehlo.add ... : (tensor<2x8x8x32xbf16>, ...`
HALF_SUM = re.compile(
    r"stablehlo\.reduce\(.*applies stablehlo\.add across dimensions = \[([0-9, ]+)\] : \(tensor<([0-9x]+)x(?:bf16|f16)>"
)


def half_sums(program):
    """Sums of more than one number in half precision; those along an axis of length 1 only drop it."""
    found = [
        (list(map(int, axes.split(","))), list(map(int, shape.split("x")))) for axes, shape in HALF_SUM.findall(program)
    ]
    return [(axes, shape) for axes, shape in found if any(shape[axis] > 1 for axis in axes)]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("layer", [Conv(4, (3, 3), padding=((1, 1), (1, 1))), Dense(4)], ids=["conv", "dense"])
def test_the_gradient_of_a_bias_is_the_whole_sum(layer, dtype):
    x = jnp.zeros((2, 128, 128, 4), dtype)
    params = layer.init(jax.random.key(0), x)
    layer = layer.clone(dtype=dtype)
    gradient = jax.grad(lambda params: jnp.sum(layer.apply(params, x).astype("float32")))(params)["params"]["bias"]
    assert gradient.dtype == "float32"
    np.testing.assert_array_equal(gradient, 2 * 128 * 128)


@pytest.mark.parametrize("dtype", HALF)
def test_broadcasting_rounds_once(dtype):
    numbers = jnp.asarray(np.random.default_rng(0).standard_normal((3, 1, 5)), dtype)
    out, back = jax.vjp(lambda x: broadcast(x, (2, 3, 1000, 5)), numbers)
    np.testing.assert_array_equal(out, jnp.broadcast_to(numbers[None], (2, 3, 1000, 5)))
    d_out = jnp.asarray(1 + np.random.default_rng(1).random(out.shape), dtype)
    exact = np.asarray(d_out, "float64").sum((0, 2))[:, None]
    (gradient,) = back(d_out)
    assert gradient.dtype == dtype
    np.testing.assert_allclose(np.asarray(gradient, "float64"), exact, rtol=float(jnp.finfo(dtype).eps))


def autoencoder(dtype):
    record = replace(
        PLAIN, attn_levels=(1,), quant_conv=True, learnable_logvar=True, time_emb_dim=8, time_embedding="sinusoidal"
    )
    model = AutoEncoder(record, dtype=dtype, attention="tiles")
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    images, noise = jax.ShapeDtypeStruct((2, 8, 8, 3), dtype), jax.ShapeDtypeStruct((2, 4, 4, 4), dtype)

    def loss(params, images, time, noise):
        out = model.apply({"params": params}, images, time, noise=noise)
        return jnp.mean(jnp.square(jnp.asarray(out, "float32")))

    return loss, (params, images, jax.ShapeDtypeStruct((2,), dtype), noise)


def discriminator(dtype):
    model = Discriminator(DiscriminatorParams(features=4, layers=2), dtype=dtype)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), dtype)
    variables = jax.eval_shape(lambda key, x: model.init(key, x, train=True), jax.random.key(0), images)

    def loss(variables, images):
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return jnp.mean(jax.nn.relu(1 - logits.astype("float32")))

    params = variables.pop("params")
    return lambda params, images, rest: loss({"params": params, **rest}, images), (params, images, variables)


def perceptual(dtype):
    model = Lpips((Stage(0, (4, 4)), Stage(5, (6,))), dtype)
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), dtype)
    params = jax.eval_shape(model.init, jax.random.key(0), images, images)
    return lambda params, a, b: jnp.mean(model.apply(params, a, b)), (params, images, images)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("case", [autoencoder, discriminator, perceptual])
def test_no_sum_is_in_half_precision(case, dtype):
    """Forwards and backwards, of parameters and inputs, as the compiler gets it."""
    loss, inputs = case(dtype)
    count = sum(all(leaf.dtype != "int32" for leaf in jax.tree.leaves(argument)) for argument in inputs)
    traced = jax.jit(jax.value_and_grad(loss, tuple(range(count)))).trace(*inputs)
    for platform in ("cpu", "cuda", "tpu"):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert {"bfloat16": "xbf16>", "float16": "xf16>"}[dtype] in program and "stablehlo.reduce" in program
        assert half_sums(program) == []


def test_a_sum_in_half_precision_would_be_found():
    x, bias = jax.ShapeDtypeStruct((2, 8, 4), "bfloat16"), jax.ShapeDtypeStruct((4,), "bfloat16")
    plain = jax.jit(jax.grad(lambda bias, x: jnp.sum((x + bias[None, None]).astype("float32"))))
    assert half_sums(plain.lower(bias, x).as_text()) == [([0, 1], [2, 8, 4])]
