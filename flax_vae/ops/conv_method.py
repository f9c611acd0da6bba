"""The parts that a method of convolution may provide, and XLA's method."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flax_vae.ops.linear_maps import varying_like

PixelPadding = tuple[tuple[int, int], tuple[int, int]]  # (before, after) of h and of w

LAYOUT = ("NHWC", "HWIO", "NHWC")


@dataclass(frozen=True)
class ConvSpec:
    """A convolution without its values, from which a method is chosen.

    Attributes:
      x: Shape and dtype of the input, `b h w i`.
      kernel: Shape and dtype of the kernel, `kh kw i o`.
      strides: Strides of h and of w.
      padding: Pixels of zeros before and after, of h and of w.
      precision: Precision of products, as `jax.lax.conv_general_dilated` takes it.
      exact: Whether the full precision of float32 is asked for.
    """

    x: jax.ShapeDtypeStruct
    kernel: jax.ShapeDtypeStruct
    strides: tuple[int, int]
    padding: PixelPadding
    precision: lax.PrecisionLike = None
    exact: bool = False

    @property
    def pointwise(self) -> bool:
        """Whether each pixel of the output is computed from one pixel of the input."""
        return self.kernel.shape[:2] == (1, 1) and self.strides == (1, 1) and not any(map(any, self.padding))


ConvFunction = Callable[[ConvSpec, Array, Array], Array]


@dataclass(frozen=True)
class Method:
    """A way to compute a convolution or its gradients; functions that it does not provide are None.

    Attributes:
      suits: Function that decides whether the method computes a convolution, and is better than the following ones.
      forward: Convolution, from `x` and the kernel.
      input_gradient: Gradient by `x`, from the kernel and the gradient by the output.
      kernel_gradient: Gradient by the kernel, from `x` and the gradient by the output.
    """

    suits: Callable[[ConvSpec], bool]
    forward: ConvFunction | None = None
    input_gradient: ConvFunction | None = None
    kernel_gradient: ConvFunction | None = None


def xla_convolution(
    spec: ConvSpec, x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"]
) -> Float[Array, "b h2 w2 o"]:
    """Returns XLA's convolution; a matrix product if it is pointwise."""
    if spec.pointwise:
        return jnp.matmul(x, kernel[0, 0], precision=spec.precision)
    return lax.conv_general_dilated(
        x, kernel, spec.strides, spec.padding, dimension_numbers=LAYOUT, precision=spec.precision
    )


def xla_input_gradient(
    spec: ConvSpec, kernel: Float[Array, "kh kw i o"], d_out: Float[Array, "b h2 w2 o"]
) -> Float[Array, "b h w i"]:
    """Returns the gradient by the input of `xla_convolution`."""
    x = varying_like(spec.x, kernel, d_out)
    return jax.linear_transpose(lambda x: xla_convolution(spec, x, kernel), x)(d_out)[0]


def xla_kernel_gradient(
    spec: ConvSpec, x: Float[Array, "b h w i"], d_out: Float[Array, "b h2 w2 o"]
) -> Float[Array, "kh kw i o"]:
    """Returns the gradient by the kernel of `xla_convolution`."""
    kernel = varying_like(spec.kernel, x, d_out)
    return jax.linear_transpose(lambda kernel: xla_convolution(spec, x, kernel), kernel)(d_out)[0]
