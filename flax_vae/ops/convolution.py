"""Convolution at the precision that was asked for, and at the speed that the platform can give."""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_vae.ops.cpu.kernel_gradient import kernel_gradient
from flax_vae.ops.cpu.small_maps import convolve_small, is_small, small_input_gradient
from flax_vae.ops.cpu.winograd import is_worth_winograd, winograd
from flax_vae.ops.linear_maps import bilinear

# On a CPU XLA adds up to about 450 products one after the other before it starts a new partial sum, PyTorch's kernels
# far fewer: the same float32 convolution has 1.7 times PyTorch's rounding error there.  With runs of this length whole
# models have 0.94 to 1.03 times PyTorch's (RMS, flux1, sdxl and seed), with runs twice as long 1.15 to 1.33 times.
LONGEST_RUN = 144

# On a CPU, gradients of kernels with fewer input channels, which are of images and latents, are XLA's own: there they
# take it less than half the time of `kernel_gradient`.
FEWEST_CHANNELS = 32


def convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw i o"],
    window_strides: Any,
    padding: Any,
    *,
    precision: jax.lax.PrecisionLike = None,
    **options: Any,
) -> Float[Array, "b h2 w2 o"]:
    """Stands in for `jax.lax.conv_general_dilated`; the same numbers up to rounding, sooner or to more digits on a CPU.

    An accelerator multiplies float32 in full where `jax.default_matmul_precision("highest")` asks for it.  A CPU always
    does, and loses digits in the order of the sum instead; there the input channels are split into runs that are
    convolved apart and added.

    A 1x1 kernel is a matrix, and a matrix product is what it is used for.  With a larger one a CPU does as in
    `flax_vae.ops.cpu.small_maps` where the kernel is larger than the map, as in `flax_vae.ops.cpu.winograd` where there
    are many channels and no more digits were asked for, and its gradient is `kernel_gradient`.  The rest is XLA's own.
    """
    strides, padding = tuple(window_strides), tuple(padding)
    pointwise = kernel.shape[:2] == (1, 1) and strides == (1, 1) and not any(map(any, padding))

    def whole(x: Array, kernel: Array) -> Array:
        if pointwise:
            return jnp.matmul(x, kernel[0, 0], precision=precision)
        if is_small(x, kernel, strides):
            return jax.lax.platform_dependent(x, kernel, cpu=small, default=plain)
        if is_worth_winograd(x, kernel, strides, padding):
            return jax.lax.platform_dependent(x, kernel, cpu=winograd, default=plain)
        return plain(x, kernel)

    def plain(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, precision=precision, **options)

    def small(x: Array, kernel: Array) -> Array:
        return convolve_small(x, kernel, padding)

    def in_runs(x: Array, kernel: Array) -> Array:
        height, width, channels, _ = kernel.shape
        run = max(LONGEST_RUN // (height * width), 1)
        starts = range(0, channels, run)
        return functools.reduce(operator.add, (whole(x[..., i : i + run], kernel[:, :, i : i + run]) for i in starts))

    asked = jax.config.jax_default_matmul_precision if precision is None else precision  # type: ignore[attr-defined]
    exact = x.dtype == "float32" and asked in ("highest", "float32", jax.lax.Precision.HIGHEST)

    def forward(x: Array, kernel: Array) -> Array:
        return jax.lax.platform_dependent(x, kernel, cpu=in_runs, default=whole) if exact else whole(x, kernel)

    if pointwise:
        return forward(x, kernel)

    # No array may be closed over below: the derivatives call these functions with others.
    small_map, many_channels = is_small(x, kernel, strides), is_worth_winograd(x, kernel, strides, padding)
    like_x, like_kernel = (jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (x, kernel))

    def by_x(kernel: Array, d_out: Array) -> Array:
        def of_plain(kernel: Array, d_out: Array) -> Array:
            return jax.linear_transpose(lambda x: plain(x, kernel), like_x)(d_out)[0]

        def of_small(kernel: Array, d_out: Array) -> Array:
            return small_input_gradient(d_out, kernel, padding)

        def of_winograd(kernel: Array, d_out: Array) -> Array:
            return winograd(d_out, kernel, backwards=True)

        if small_map:
            return jax.lax.platform_dependent(kernel, d_out, cpu=of_small, default=of_plain)
        if many_channels and not exact:
            return jax.lax.platform_dependent(kernel, d_out, cpu=of_winograd, default=of_plain)
        return of_plain(kernel, d_out)

    def by_kernel(x: Array, d_out: Array) -> Array:
        def of_plain(x: Array, d_out: Array) -> Array:
            return jax.linear_transpose(lambda kernel: plain(x, kernel), like_kernel)(d_out)[0]

        def of_taps(x: Array, d_out: Array) -> Array:
            stride, _ = strides
            size = (like_kernel.shape[0], like_kernel.shape[1])
            return kernel_gradient(x, d_out, size, stride, padding).astype(like_kernel.dtype)

        if like_kernel.shape[2] < FEWEST_CHANNELS and not exact:
            return of_plain(x, d_out)
        return jax.lax.platform_dependent(x, d_out, cpu=of_taps, default=of_plain)

    return bilinear(forward, by_x, by_kernel)(x, kernel)
