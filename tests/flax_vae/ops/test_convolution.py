"""The faster ways to convolve give XLA's own numbers and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.ops import convolution, upsampling
from flax_vae.ops.conv_method import ConvSpec, xla_convolution
from flax_vae.ops.convolution import CPU_METHODS, convolve
from flax_vae.ops.cpu import channel_runs, kernel_gradient, small_maps, winograd
from flax_vae.ops.upsampling import upsample_and_convolve
from flax_vae.train.devices.count_flops import TracedProgram

LAYOUT = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))


def xla(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


def draw(height, width, kernel, dtype="float64"):
    rng = np.random.default_rng(0)
    numbers = (rng.standard_normal((2, height, width, 4)), rng.standard_normal((*kernel, 4, 5)))
    return tuple(jnp.asarray(array, dtype) for array in numbers)


def spec_of(x, kernel, strides=(1, 1), padding=SAME, dtype="float32", **options):
    """A convolution of the given shapes, without values."""
    return ConvSpec(jax.ShapeDtypeStruct(x, dtype), jax.ShapeDtypeStruct(kernel, dtype), strides, padding, **options)


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
    monkeypatch.setattr(kernel_gradient, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(kernel_gradient, "LARGE", large)
    monkeypatch.setattr(kernel_gradient, "BAND_POSITIONS", positions)

    def ours(x, kernel):
        return convolve(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)

    assert_same(ours, lambda x, kernel: xla(x, kernel, stride, padding), draw(*size, kernel))


@pytest.mark.cpu
@CASES
def test_small_maps_are_multiplied_by_the_whole_kernel(x64, monkeypatch, size, kernel, stride, padding):
    monkeypatch.setattr(small_maps, "LEAST_NUMBERS", 1)
    monkeypatch.setattr(small_maps, "MOST_POSITIONS", 1000)
    monkeypatch.setattr(kernel_gradient, "FEWEST_CHANNELS", 1)

    def ours(x, kernel):
        return convolve(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)

    inputs = draw(*size, kernel)
    assert_same(ours, lambda x, kernel: xla(x, kernel, stride, padding), inputs)
    program = jax.jit(jax.grad(lambda *inputs: ours(*inputs).sum(), (0, 1))).lower(*inputs).as_text()
    assert ("stablehlo.convolution" in program) == (stride > 1)


def test_maps_are_small_beside_large_kernels_only():
    kernel = (3, 3, 512, 512)
    is_small = small_maps.is_small
    assert is_small(spec_of((1, 16, 16, 512), kernel))
    assert not is_small(spec_of((1, 16, 16, 512), kernel, (2, 2)))
    assert not is_small(spec_of((1, 32, 32, 512), kernel))
    assert not is_small(spec_of((1, 16, 16, 512), kernel, dtype="bfloat16"))
    assert not is_small(spec_of((1, 8, 8, 256), (3, 3, 256, 256)))


@pytest.mark.cpu
@pytest.mark.parametrize("size", [(2, 2), (6, 4), (8, 10)])
def test_winograd_gives_values_and_gradients(x64, monkeypatch, size):
    monkeypatch.setattr(winograd, "LEAST_NUMBERS", 1)
    inputs = draw(*size, (3, 3))

    def ours(x, kernel):
        return convolve(x, kernel, (1, 1), SAME, dimension_numbers=LAYOUT)

    assert_same(ours, lambda x, kernel: xla(x, kernel, 1, SAME), inputs)
    monkeypatch.setattr(kernel_gradient, "FEWEST_CHANNELS", 1)
    program = jax.jit(jax.grad(lambda *inputs: ours(*inputs).sum(), (0, 1))).lower(*inputs).as_text()
    assert "stablehlo.convolution" not in program


def test_winograd_rounds_little():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), "float32") for shape in ((1, 8, 8, 512), (3, 3, 512, 256)))
    with jax.enable_x64(True):
        exact = np.asarray(xla(x.astype("float64"), kernel.astype("float64"), 1, SAME))
    spec = spec_of(x.shape, kernel.shape)
    errors = [np.std(np.asarray(way(spec, x, kernel)) - exact) for way in (winograd.winograd, xla_convolution)]
    assert errors[0] < 2.5 * errors[1]


def test_winograd_is_for_many_channels_of_even_maps():
    kernel = (3, 3, 512, 512)
    worth = winograd.is_worth_winograd
    assert worth(spec_of((1, 64, 64, 512), kernel))
    assert not worth(spec_of((1, 64, 66, 512), kernel))
    assert not worth(spec_of((1, 63, 64, 512), kernel))
    assert not worth(spec_of((1, 64, 64, 512), kernel, (2, 2)))
    assert not worth(spec_of((1, 64, 64, 512), kernel, padding=((0, 1), (0, 1))))
    assert not worth(spec_of((1, 64, 64, 512), kernel, dtype="bfloat16"))
    assert not worth(spec_of((1, 64, 64, 512), kernel, exact=True))
    assert not worth(spec_of((1, 64, 64, 256), (3, 3, 256, 256)))


METHODS = dict(zip(("runs", "pointwise", "small", "winograd", "taps", "xla"), CPU_METHODS, strict=True))


@pytest.mark.parametrize(
    ("spec", "forward", "input_gradient", "kernel_gradient"),
    [
        (spec_of((1, 64, 64, 512), (3, 3, 512, 512)), "winograd", "winograd", "taps"),
        (spec_of((1, 16, 16, 512), (3, 3, 512, 512)), "small", "small", "taps"),
        (spec_of((1, 16, 16, 512), (1, 1, 512, 512), padding=((0, 0), (0, 0))), "pointwise", None, None),
        (spec_of((1, 64, 64, 64), (3, 3, 64, 64)), "xla", "xla", "taps"),
        (spec_of((1, 64, 64, 64), (3, 3, 64, 64), (2, 1)), "xla", "xla", "xla"),
        (spec_of((1, 64, 64, 3), (3, 3, 3, 64)), "xla", "xla", "xla"),
        (spec_of((1, 64, 64, 3), (3, 3, 3, 64), exact=True), "runs", "xla", "taps"),
        (spec_of((1, 64, 64, 512), (3, 3, 512, 512), exact=True), "runs", "xla", "taps"),
        (spec_of((1, 16, 16, 512), (3, 3, 512, 512), exact=True), "runs", "small", "taps"),
    ],
)
def test_a_method_is_chosen_for_each_part(spec, forward, input_gradient, kernel_gradient):
    for part, name in {
        "forward": forward,
        "input_gradient": input_gradient,
        "kernel_gradient": kernel_gradient,
    }.items():
        if name is not None:
            chosen = convolution._chosen(spec, part)
            on_cpu = chosen.keywords["cpu"] if chosen.keywords else chosen
            assert on_cpu.func is getattr(METHODS[name], part)


def test_other_layouts_are_refused():
    x, kernel = draw(4, 4, (3, 3), "float32")
    with pytest.raises(ValueError, match="NCHW.*expected.*NHWC"):
        convolve(x, kernel, (1, 1), SAME, dimension_numbers=("NCHW", "OIHW", "NCHW"))


@pytest.mark.cpu
def test_highest_precision_never_takes_winograd():
    x, kernel = jnp.zeros((1, 32, 32, 512)), jnp.zeros((3, 3, 512, 512))

    def program():
        loss = jax.grad(lambda *inputs: convolve(*inputs, (1, 1), SAME, dimension_numbers=LAYOUT).sum(), (0, 1))
        return jax.jit(loss).lower(x, kernel).as_text()

    assert "tensor<16x512x512xf32>" in program()  # the weights' sums
    with jax.default_matmul_precision("highest"):
        assert "tensor<16x512x512xf32>" not in program()


def upsample(x, kernel, **options):
    return upsample_and_convolve(x, kernel, (1, 1), SAME, dimension_numbers=LAYOUT, **options)


def doubled(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


@pytest.mark.parametrize(("platform", "in_place"), [("cpu", 8), ("cuda", 8), ("tpu", 8), ("tpu", 2)])
@pytest.mark.parametrize("size", [(5, 3), (1, 2)])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_upsampling(x64, monkeypatch, platform, in_place, size, mode):
    monkeypatch.setattr(upsampling, "BATCH_IN_PLACE", in_place)
    monkeypatch.setitem(upsampling.WAYS, "cpu", upsampling.WAYS[platform])
    plain = reflect_and_convolve if mode == "reflect" else xla
    inputs = draw(*size, (3, 3))
    assert_same(partial(upsample, padding_mode=mode), lambda x, kernel: plain(doubled(x), kernel, 1, SAME), inputs)
    singles = [array.astype("float32") for array in inputs]
    expected = plain(doubled(inputs[0]), inputs[1], 1, SAME)
    np.testing.assert_allclose(upsample(*singles, padding_mode=mode), expected, rtol=0, atol=1e-5 * np.std(expected))


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("cuda", 1), ("tpu", 4)])
def test_upsampling_has_four_ninths_of_the_arithmetic(x64, platform, convolutions):
    """The small map is convolved, never the large one; what is counted without a platform is the model as written."""
    inputs = draw(5, 3, (3, 3))
    program = jax.jit(upsample).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == convolutions and "10x6x4xf64" not in program
    if platform != "cpu":
        plain = 2 * (2 * 10 * 6 * 5) * 9 * 4
        forward = TracedProgram(upsample, *inputs)
        assert forward.operations(platform=platform) == plain * 4 / 9
        assert forward.operations() == plain


@pytest.mark.parametrize("platform", upsampling.WAYS)
@pytest.mark.parametrize(
    ("of_x", "of_kernel"), [("float64", "float32"), ("float32", "float64"), ("bfloat16", "float32")]
)
def test_upsampling_rounds_to_the_dtype_of_the_map(x64, monkeypatch, platform, of_x, of_kernel):
    monkeypatch.setitem(upsampling.WAYS, "cpu", upsampling.WAYS[platform])
    x, kernel = draw(3, 3, (3, 3), of_x)[0], draw(3, 3, (3, 3), of_kernel)[1]
    out, back = jax.vjp(upsample, x, kernel)
    assert [out.dtype, *(each.dtype for each in back(out))] == [of_x, of_x, of_kernel]


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_upsampling_in_half_precision_rounds_weights_once(monkeypatch, platform):
    """Sums of float32 weights, rounded once, are as close to the exact result as rounded weights are."""
    x, kernel = draw(16, 16, (3, 3), "float32")
    x = x.astype("bfloat16")
    exact = xla(doubled(x).astype("float32"), kernel, 1, SAME)
    written = xla(doubled(x), kernel.astype("bfloat16"), 1, SAME)
    ours, back = jax.vjp(partial(upsampling.WAYS[platform]), x, kernel)
    assert ours.dtype == "bfloat16" and [each.dtype for each in back(ours)] == ["bfloat16", "float32"]
    errors = [np.std(np.asarray(each, "float32") - exact) for each in (ours, written)]
    assert errors[0] < 1.05 * errors[1]


@pytest.mark.cpu
def test_upsampling_in_half_precision_on_a_cpu_is_not_folded():
    program = jax.jit(upsample).lower(*draw(3, 3, (3, 3), "bfloat16"))
    assert program.as_text().count("stablehlo.convolution") == 1


@pytest.mark.cpu
def test_highest_precision_splits_the_channels(x64, monkeypatch):
    monkeypatch.setattr(channel_runs, "LONGEST_RUN", 9)
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


def reflect_and_convolve(x, kernel, stride, padding):
    return xla(jnp.pad(x, ((0, 0), *padding, (0, 0)), mode="reflect"), kernel, stride, ((0, 0), (0, 0)))


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [((7, 5), 1, SAME), ((9, 6), 2, SAME), ((2, 2), 1, SAME), ((5, 4), 1, ((1, 0), (0, 1)))],
)
def test_reflection(x64, size, stride, padding):
    def ours(x, kernel):
        return convolve(x, kernel, (stride, stride), padding, padding_mode="reflect")

    assert_same(ours, lambda *inputs: reflect_and_convolve(*inputs, stride, padding), draw(*size, (3, 3)))


def test_upsampling_before_a_reflection_in_half_precision():
    x, kernel = draw(3, 5, (3, 3), "bfloat16")
    exact = reflect_and_convolve(doubled(x).astype("float32"), kernel.astype("float32"), 1, SAME)
    ours = upsample(x, kernel, padding_mode="reflect").astype("float32")
    np.testing.assert_allclose(ours, exact, rtol=0, atol=0.1)


@pytest.mark.parametrize(("size", "padding"), [((1, 4), SAME), ((4, 1), SAME), ((4, 4), ((2, 2), (1, 1)))])
def test_what_cannot_be_reflected_is_refused(size, padding):
    with pytest.raises(ValueError, match="expected at most one pixel on each side, and at least 2 rows and columns"):
        convolve(*draw(*size, (3, 3), "float32"), (1, 1), padding, padding_mode="reflect")
