"""Convolution by the best method for a platform, a shape and a precision."""

from functools import partial
from typing import Any, Literal

import jax
from jaxtyping import Array, Float

from flax_vae.ops.conv_method import (
    LAYOUT,
    ConvSpec,
    Method,
    xla_convolution,
    xla_input_gradient,
    xla_kernel_gradient,
)
from flax_vae.ops.cpu.channel_runs import convolve_in_runs
from flax_vae.ops.cpu.kernel_gradient import has_many_channels, kernel_gradient
from flax_vae.ops.cpu.small_maps import convolve_small, is_small, small_input_gradient
from flax_vae.ops.cpu.winograd import is_worth_winograd, winograd, winograd_input_gradient
from flax_vae.ops.linear_maps import bilinear
from flax_vae.ops.reflection import reflected

XLA = Method(lambda spec: True, xla_convolution, xla_input_gradient, xla_kernel_gradient)

# The methods on a CPU.  The first that suits and has a function provides it; other platforms use XLA's functions.
CPU_METHODS = (
    # suits, forward, input gradient, kernel gradient
    Method(lambda spec: spec.exact, convolve_in_runs),
    Method(lambda spec: spec.pointwise, xla_convolution),
    Method(is_small, convolve_small, small_input_gradient),
    Method(is_worth_winograd, winograd, winograd_input_gradient),
    Method(has_many_channels, kernel_gradient=kernel_gradient),
    XLA,
)


def convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw i o"],
    window_strides: Any,
    padding: Any,
    *,
    dimension_numbers: Any = LAYOUT,
    precision: jax.lax.PrecisionLike = None,
    padding_mode: Literal["zeros", "reflect"] = "zeros",
) -> Float[Array, "b h2 w2 o"]:
    """Returns the result of `jax.lax.conv_general_dilated`, up to rounding.

    Differentiable in both modes and any number of times.  `jax.default_matmul_precision("highest")` asks for the full
    precision of float32: accelerators then multiply in float32, and CPUs sum in an order that loses fewer digits.

    Args:
      x: Input.
      kernel: Kernel.
      window_strides: Strides of h and of w.
      padding: Pixels before and after, of h and of w.
      dimension_numbers: Layout of input, kernel and output; the methods know only this one.
      precision: Precision of products; None uses JAX's default.
      padding_mode: With what `x` is padded; `"reflect"` takes one pixel at most, that beside the edge.

    Raises:
      ValueError: If the layout is another one, or if `x` is too small to reflect.
    """
    if padding_mode == "reflect":
        x, padding = reflected(x, padding), ((0, 0), (0, 0))
    if tuple(dimension_numbers) != LAYOUT:
        raise ValueError(f"dimension_numbers={dimension_numbers!r}; expected {LAYOUT}")
    spec = ConvSpec(
        *(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (x, kernel)),
        strides=tuple(window_strides),
        padding=tuple(padding),
        precision=precision,
        exact=is_exact(x, precision),
    )
    forward = _chosen(spec, "forward")
    if spec.pointwise:  # JAX's derivatives of a matrix product are matrix products
        return forward(x, kernel)
    return bilinear(forward, _chosen(spec, "input_gradient"), _chosen(spec, "kernel_gradient"))(x, kernel)


def is_exact(x: Array, precision: jax.lax.PrecisionLike) -> bool:
    """Returns whether the full precision of float32 is asked for, by an argument or as JAX's default."""
    asked = jax.config.jax_default_matmul_precision if precision is None else precision  # type: ignore[attr-defined]
    return x.dtype == "float32" and asked in ("highest", "float32", jax.lax.Precision.HIGHEST)


def _chosen(spec: ConvSpec, part: Literal["forward", "input_gradient", "kernel_gradient"]) -> Any:
    """Returns a function of two arrays: that of the best method on a CPU, XLA's elsewhere."""
    xla = getattr(XLA, part)
    best = next(getattr(method, part) for method in CPU_METHODS if getattr(method, part) and method.suits(spec))
    if best is xla:
        return partial(xla, spec)
    return partial(jax.lax.platform_dependent, cpu=partial(best, spec), default=partial(xla, spec))
