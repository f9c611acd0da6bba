"""Derivatives in forward mode and of second order, of every path with a hand-written gradient and of a whole model."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae import AutoEncoder
from flax_vae import attention as attention_module
from flax_vae.attention import attention, full_attention
from flax_vae.ops import upsampling
from flax_vae.ops.attention_tiles import Tile, tiled_attention
from flax_vae.ops.broadcasting import broadcast
from flax_vae.ops.convolution import convolve
from flax_vae.ops.cpu import kernel_gradient, small_maps, winograd
from flax_vae.ops.group_norm import GroupNorm
from flax_vae.ops.upsampling import upsample_and_convolve
from flax_vae.train.losses.perceptual import Lpips, Stage
from tests.flax_vae.random_models import PLAIN, quick_jit, random_inputs, random_params

pytestmark = pytest.mark.usefixtures("x64")

LAYOUT = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape)) for shape in shapes)


def xla(x, kernel, stride=1, padding=SAME):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


def convolution_of(stride=1, padding=SAME):
    return lambda x, kernel: convolve(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


def norm(x, scale, bias):
    params = {"scale": scale, "bias": bias}
    return GroupNorm(4, 1e-3).apply({"params": params}, x, method="with_swish")


def plain_norm(x, scale, bias):
    grouped = x.reshape(*x.shape[:3], 4, -1)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)
    y = ((grouped - mean) / jnp.sqrt(variance + 1e-3)).reshape(x.shape) * scale[None, None, None]
    return jax.nn.silu(y + bias[None, None, None])


def upsampled(x, kernel):
    return upsample_and_convolve(x, kernel, (1, 1), SAME, dimension_numbers=LAYOUT)


def plain_upsampled(x, kernel):
    return xla(x.repeat(2, axis=1).repeat(2, axis=2), kernel)


MAP, KERNEL = (2, 6, 4, 4), (3, 3, 4, 5)
QKV = ((2, 11, 8), (2, 13, 8), (2, 13, 8))
PATHS = {
    "XLA's convolution": (convolution_of(), xla, (MAP, KERNEL), {}),
    "stride": (convolution_of(2), lambda *a: xla(*a, 2), (MAP, KERNEL), {}),
    "small bands": (convolution_of(), xla, (MAP, KERNEL), {(kernel_gradient, "LARGE"): 0}),
    "small map": (convolution_of(), xla, (MAP, KERNEL), {(small_maps, "LEAST_NUMBERS"): 1}),
    "winograd": (convolution_of(), xla, (MAP, KERNEL), {(winograd, "LEAST_NUMBERS"): 1}),
    "pointwise": (
        convolution_of(padding=((0, 0), (0, 0))),
        lambda *a: xla(*a, 1, ((0, 0), (0, 0))),
        (MAP, (1, 1, 4, 5)),
        {},
    ),
    "upsampling": (upsampled, plain_upsampled, (MAP, KERNEL), {}),
    "upsampling, transposed": (upsampling.WAYS["cuda"], plain_upsampled, (MAP, KERNEL), {}),
    "upsampling, by corners": (upsampling.WAYS["tpu"], plain_upsampled, (MAP, KERNEL), {}),
    "norm and swish": (norm, plain_norm, ((2, 5, 3, 12), (12,), (12,)), {}),
    "attention in tiles": (lambda *qkv: tiled_attention(*qkv, Tile(4, 5)), full_attention, QKV, {}),
    "attention, one tile of queries": (lambda *qkv: tiled_attention(*qkv, Tile(16, 5)), full_attention, QKV, {}),
    "attention by platform": (
        lambda *qkv: attention(*qkv, path="tiles"),
        full_attention,
        QKV,
        {(attention_module, "CPU_TILE"): Tile(7, 5)},
    ),
    "broadcast": (
        lambda x, y: x * broadcast(y, x.shape),
        lambda x, y: x * jnp.broadcast_to(y[None, None, None], x.shape),
        (MAP, (4,)),
        {},
    ),
}


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Our function, plain JAX that computes the same, and inputs; the path is forced upon the small ones."""
    ours, plain, shapes, forced = PATHS[request.param]
    monkeypatch.setattr(kernel_gradient, "FEWEST_CHANNELS", 1)
    for (module, name), value in {(small_maps, "MOST_POSITIONS"): 1000, **forced}.items():
        monkeypatch.setattr(module, name, value)
    return ours, plain, draw(*shapes)


def assert_close(ours, expected, tolerance=1e-10):
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(1, np.abs(y).max()))


def inner(x, y):
    return sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True))


def test_forward_mode(path):
    """The tangent is plain JAX's, and <v, J u> is <Jᵀ v, u>: for all inputs together and for each."""
    ours, plain, inputs = path
    tangents = draw(*(x.shape for x in inputs), seed=1)
    out, d_out = quick_jit(lambda *a: jax.jvp(ours, a, tangents))(*inputs)
    assert_close((out, d_out), jax.jvp(plain, inputs, tangents))
    (v,) = draw(out.shape, seed=2)
    assert_close(inner(v, d_out), inner(jax.vjp(ours, *inputs)[1](v), tangents))
    assert_close(jax.linearize(ours, *inputs)[1](*tangents), d_out)
    for index, tangent in enumerate(tangents):

        def of_one(x, index=index):
            return ours(*inputs[:index], x, *inputs[index + 1 :])

        part = jax.jvp(of_one, (inputs[index],), (tangent,))[1]
        assert_close(inner(v, part), inner(jax.vjp(of_one, inputs[index])[1](v), tangent))


def losses(ours, plain, inputs):
    (weights,) = draw(jax.eval_shape(ours, *inputs).shape, seed=3)
    return tuple(lambda x, f=f: jnp.sum(weights * jnp.sin(f(*x))) for f in (ours, plain))


def products(loss, x, tangent):
    """Hessian times tangent, in the three orders of the modes that are of use."""
    gradient = jax.grad(loss)
    return {
        "forward over reverse": jax.jvp(gradient, (x,), (tangent,))[1],
        "reverse over reverse": jax.grad(lambda x: inner(gradient(x), tangent))(x),
        "reverse over forward": jax.grad(lambda x: jax.jvp(loss, (x,), (tangent,))[1])(x),
    }


def test_second_order(path):
    ours, plain, inputs = path
    tangents = draw(*(x.shape for x in inputs), seed=1)
    loss, plain_loss = losses(ours, plain, inputs)
    expected = jax.jvp(jax.grad(plain_loss), (inputs,), (tangents,))[1]
    for product in quick_jit(lambda *a: products(loss, *a))(inputs, tangents).values():
        assert_close(product, expected)


def test_under_vmap(path):
    """Mapped over one input and over all, in both modes."""
    ours, plain, inputs = path
    tangents = draw(*(x.shape for x in inputs), seed=1)
    several = jax.tree.map(lambda x, t: jnp.stack([x, x + 0.1 * t]), inputs, tangents)

    def both_modes(function):
        def of(*x):
            out, back = jax.vjp(function, *x)
            return out, back(out), jax.jvp(function, x, tangents)[1]

        first = jax.vmap(of, in_axes=(0, *[None] * (len(inputs) - 1)))(several[0], *inputs[1:])
        # The gradient of what is mapped over by what is not: a sum over the mapped axis.
        total = jax.grad(lambda last: jnp.sum(jax.vmap(lambda x: function(x, *inputs[1:-1], last))(several[0]) ** 2))
        return first, jax.vmap(of)(*several), total(inputs[-1])

    assert_close(quick_jit(lambda: both_modes(ours))(), quick_jit(lambda: both_modes(plain))())


def whole(record):
    model = AutoEncoder(record, param_dtype="float64", attention="tiles")
    params = random_params(model, "float64")
    x, time = random_inputs(record, (1, 4, 4), record.in_channels)
    noise = np.random.default_rng(3).standard_normal((1, 2, 2, record.z_channels))
    return model, params, x.astype("float64"), None if time is None else time.astype("float64"), noise


@pytest.mark.slow
def test_a_whole_model():
    """encode, posterior and decode, by images and parameters; forward mode and a Hessian-vector product."""
    model, params, x, time, noise = whole(replace(PLAIN, time_emb_dim=6))

    def everything(params, x):
        def run(model, x):
            z = model.encode(x, time, noise=noise)
            return z, model.posterior(x, time).logvar, model.decode(z, time)

        return model.apply({"params": params}, x, method=run)

    u = jax.tree.map(lambda leaf: draw(leaf.shape, seed=leaf.size)[0], (params, x))

    def loss(at):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in everything(*at))

    def shifted(step):
        return jax.tree.map(lambda a, b: a + step * b, (params, x), u)

    def difference(function):
        return jax.tree.map(lambda a, b: (a - b) / 2e-5, function(shifted(1e-5)), function(shifted(-1e-5)))

    out, d_out = quick_jit(lambda *at: jax.jvp(everything, at, u))(params, x)
    v = jax.tree.map(jnp.cos, out)
    gradients = quick_jit(lambda *at: jax.vjp(everything, *at)[1](v))(params, x)
    assert abs(inner(v, d_out) - inner(gradients, u)) <= 1e-10 * abs(inner(v, d_out))
    assert_close(d_out, difference(quick_jit(lambda at: everything(*at))), 1e-5)
    product = quick_jit(lambda *at: jax.jvp(jax.grad(loss), (at,), (u,))[1])(params, x)
    assert_close(product, difference(quick_jit(jax.grad(loss))), 1e-5)


def test_perceptual_distance():
    lpips = Lpips((Stage(0, (4, 4)), Stage(5, (6,), pool=2)))
    a, b, u, v = draw(*[(2, 9, 8, 3)] * 4)
    params = jax.tree.map(lambda leaf: draw(leaf.shape)[0], lpips.init(jax.random.key(0), a, b))

    def distance(a):
        return lpips.apply(params, a, b).sum()

    def derivatives(a):
        of_gradient = [jax.jvp(jax.grad(distance), (a,), (t,))[1] for t in (u, v)]
        return jax.jvp(distance, (a,), (u,))[1], jax.grad(distance)(a), *of_gradient

    slope, gradient, along_u, along_v = quick_jit(derivatives)(a)
    assert_close(slope, inner(gradient, u))
    assert_close(inner(along_u, v), inner(along_v, u))  # a Hessian is symmetric


def test_second_derivatives_of_tiles_need_linear_memory(optimised):
    def temporaries(n):
        def gradient(*qkv):
            return jax.grad(lambda *qkv: attention(*qkv, path="tiles").sum(), (0, 1, 2))(*qkv)

        qkv = [jax.ShapeDtypeStruct((1, n, 16), "float32")] * 3
        again = jax.jit(jax.grad(lambda *qkv: inner(gradient(*qkv), qkv), (0, 1, 2)))
        return again.lower(*qkv).compile().memory_analysis().temp_size_in_bytes

    n = 2**14
    grown = temporaries(n) - temporaries(n // 4)
    assert grown < 40 * 4 * 16 * n < 4 * n * n / 8  # a few dozen arrays as large as q, and no scores
