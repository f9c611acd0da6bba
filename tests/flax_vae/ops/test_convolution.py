"""The faster ways to convolve give XLA's own numbers and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.ops import convolution
from flax_vae.ops.convolution import convolve
from flax_vae.ops.cpu import kernel_gradient, small_maps, winograd
from flax_vae.ops.upsampling import upsample_and_convolve

LAYOUT = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))


def xla(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


def draw(height, width, kernel, dtype="float64"):
    rng = np.random.default_rng(0)
    numbers = (rng.standard_normal((2, height, width, 4)), rng.standard_normal((*kernel, 4, 5)))
    return tuple(jnp.asarray(array, dtype) for array in numbers)


def assert_same(ours, theirs, inputs):
    out, back = jax.vjp(ours, *inputs)
    expected, their_back = jax.vjp(theirs, *inputs)
    d_out = jnp.asarray(np.random.default_rng(1).standard_normal(expected.shape), expected.dtype)
    for x, y in zip((out, *back(d_out)), (expected, *their_back(d_out)), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)


CASES = pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((7, 5), (3, 3), 1, SAME),
        ((6, 6), (1, 1), 1, ((0, 0), (0, 0))),
        ((8, 6), (3, 3), 2, ((0, 1), (0, 1))),
        ((9, 7), (3, 3), 2, SAME),
        ((9, 6), (3, 3), 2, ((0, 1), (0, 1))),  # rows at the end that no window reaches
        ((6, 7), (2, 2), 1, ((1, 0), (0, 1))),
        ((5, 8), (3, 2), 1, ((0, 0), (2, 0))),
        ((2, 2), (3, 3), 1, SAME),  # fewer positions than the kernel has rows
    ],
)


# Large with a row a band, bands that do not divide the rows, one band; small.
@pytest.mark.parametrize(("large", "positions"), [(0, 1), (0, 11), (0, 1000), (1000, 1)])
@CASES
def test_values_and_gradients(x64, monkeypatch, size, kernel, stride, padding, large, positions):
    monkeypatch.setattr(convolution, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(kernel_gradient, "LARGE", large)
    monkeypatch.setattr(kernel_gradient, "BAND_POSITIONS", positions)

    def ours(x, kernel):
        return convolve(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)

    assert_same(ours, lambda x, kernel: xla(x, kernel, stride, padding), draw(*size, kernel))


@CASES
def test_small_maps_are_multiplied_by_the_whole_kernel(x64, monkeypatch, size, kernel, stride, padding):
    monkeypatch.setattr(small_maps, "LEAST_NUMBERS", 1)
    monkeypatch.setattr(small_maps, "MOST_POSITIONS", 1000)
    monkeypatch.setattr(convolution, "FEWEST_CHANNELS", 1)

    def ours(x, kernel):
        return convolve(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)

    inputs = draw(*size, kernel)
    assert_same(ours, lambda x, kernel: xla(x, kernel, stride, padding), inputs)
    program = jax.jit(jax.grad(lambda *inputs: ours(*inputs).sum(), (0, 1))).lower(*inputs).as_text()
    assert ("stablehlo.convolution" in program) == (stride > 1)


def test_only_large_kernels_meet_small_maps_so():
    kernel = jnp.zeros((3, 3, 512, 512))
    is_small = small_maps.is_small
    assert is_small(jnp.zeros((1, 16, 16, 512)), kernel, (1, 1))
    assert not is_small(jnp.zeros((1, 16, 16, 512)), kernel, (2, 2))
    assert not is_small(jnp.zeros((1, 32, 32, 512)), kernel, (1, 1))
    assert not is_small(jnp.zeros((1, 16, 16, 512), jnp.bfloat16), kernel, (1, 1))
    assert not is_small(jnp.zeros((1, 8, 8, 256)), jnp.zeros((3, 3, 256, 256)), (1, 1))


@pytest.mark.parametrize("size", [(2, 2), (6, 4), (8, 10)])
def test_winograd_gives_values_and_gradients(x64, monkeypatch, size):
    monkeypatch.setattr(winograd, "LEAST_NUMBERS", 1)
    inputs = draw(*size, (3, 3))

    def ours(x, kernel):
        return convolve(x, kernel, (1, 1), SAME, dimension_numbers=LAYOUT)

    assert_same(ours, lambda x, kernel: xla(x, kernel, 1, SAME), inputs)
    monkeypatch.setattr(convolution, "FEWEST_CHANNELS", 1)
    program = jax.jit(jax.grad(lambda *inputs: ours(*inputs).sum(), (0, 1))).lower(*inputs).as_text()
    assert "stablehlo.convolution" not in program


def test_winograd_rounds_little():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), "float32") for shape in ((1, 8, 8, 512), (3, 3, 512, 256)))
    with jax.enable_x64(True):
        exact = np.asarray(xla(x.astype("float64"), kernel.astype("float64"), 1, SAME))
    errors = [np.std(np.asarray(way(x, kernel)) - exact) for way in (winograd.winograd, lambda *a: xla(*a, 1, SAME))]
    assert errors[0] < 2.5 * errors[1]


def test_winograd_is_for_many_channels_of_even_maps():
    kernel = jnp.zeros((3, 3, 512, 512))
    worth = winograd.is_worth_winograd
    assert worth(jnp.zeros((1, 64, 64, 512)), kernel, (1, 1), SAME)
    assert not worth(jnp.zeros((1, 64, 66, 512)), kernel, (1, 1), SAME)
    assert not worth(jnp.zeros((1, 63, 64, 512)), kernel, (1, 1), SAME)
    assert not worth(jnp.zeros((1, 64, 64, 512)), kernel, (2, 2), SAME)
    assert not worth(jnp.zeros((1, 64, 64, 512)), kernel, (1, 1), ((0, 1), (0, 1)))
    assert not worth(jnp.zeros((1, 64, 64, 512), jnp.bfloat16), kernel, (1, 1), SAME)
    assert not worth(jnp.zeros((1, 64, 64, 256)), jnp.zeros((3, 3, 256, 256)), (1, 1), SAME)


def test_highest_precision_never_takes_winograd():
    x, kernel = jnp.zeros((1, 32, 32, 512)), jnp.zeros((3, 3, 512, 512))

    def program():
        loss = jax.grad(lambda *inputs: convolve(*inputs, (1, 1), SAME, dimension_numbers=LAYOUT).sum(), (0, 1))
        return jax.jit(loss).lower(x, kernel).as_text()

    assert "tensor<16x512x512xf32>" in program()  # the weights' sums
    with jax.default_matmul_precision("highest"):
        assert "tensor<16x512x512xf32>" not in program()


def test_upsampling_is_four_convolutions_of_the_small_map(x64):
    x, kernel = draw(5, 3, (3, 3))

    def as_written(x, kernel):
        return xla(x.repeat(2, axis=1).repeat(2, axis=2), kernel, 1, SAME)

    def ours(x, kernel):
        return upsample_and_convolve(x, kernel, (1, 1), SAME, dimension_numbers=LAYOUT)

    assert_same(ours, as_written, (x, kernel))
    program = jax.jit(ours).lower(x, kernel).as_text()
    assert program.count("stablehlo.convolution") == 4 and "10x6x4xf64" not in program  # the large map never exists


def test_upsampling_in_half_precision_rounds_no_sums_of_weights():
    inputs = draw(3, 3, (3, 3), "bfloat16")
    program = jax.jit(lambda x, k: upsample_and_convolve(x, k, (1, 1), SAME, dimension_numbers=LAYOUT)).lower(*inputs)
    assert program.as_text().count("stablehlo.convolution") == 1


def test_highest_precision_splits_the_channels(x64, monkeypatch):
    monkeypatch.setattr(convolution, "LONGEST_RUN", 9)
    x, kernel = draw(5, 4, (3, 3), "float32")
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(lambda x, kernel: convolve(x, kernel, (1, 1), SAME, dimension_numbers=LAYOUT))
        assert forward.lower(x, kernel).as_text().count("stablehlo.convolution") == 4
        np.testing.assert_allclose(forward(x, kernel), xla(x, kernel, 1, SAME), atol=1e-5)


def test_accelerators_keep_their_own_convolution_and_gradient():
    x, kernel = draw(4, 4, (3, 3), "float32")

    def program(function):
        gradients = jax.jit(
            jax.grad(lambda *inputs: function(*inputs, (1, 1), SAME, dimension_numbers=LAYOUT).sum(), (0, 1))
        )
        return gradients.trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()

    assert "while" not in program(convolve) and "while" not in program(upsample_and_convolve)
    assert program(convolve).count("stablehlo.convolution") == 2
