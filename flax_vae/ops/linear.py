"""Dense layer and convolution with linen's parameters; gradients of their biases are summed in float32 at least."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from flax_vae.ops.broadcasting import add
from flax_vae.ops.conv_method import LAYOUT, PixelPadding

Initializer = Callable[..., Any]


class Dense(nn.Module):
    """A linear map of the last axis, as `flax.linen.Dense`.

    Attributes:
      features: Width of the output.
      dtype: Computation dtype; None infers it from input and parameters.
      param_dtype: Dtype of the parameters.
    """

    features: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """Returns the product with `kernel`, plus `bias`.

        Args:
          x: Vectors, along the last axis.
        """
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype)
        x, kernel, _ = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return _plus_bias(_product, x, kernel, bias)


class Conv(nn.Module):
    """A convolution of maps, as `flax.linen.Conv`.

    Attributes:
      features: Width of the output.
      kernel_size: Height and width of the kernel.
      strides: Stride, in both directions.
      padding: Pixels of zeros before and after, for h and for w.
      use_bias: Whether a bias is added.
      dtype: Computation dtype; None infers it from input and parameters.
      param_dtype: Dtype of the parameters.
      kernel_init: Initializer of the kernel.
      bias_init: Initializer of the bias.
      convolution: Function that convolves; it has the arguments of `jax.lax.conv_general_dilated`.
      round_kernel: Whether the kernel is rounded to the computation dtype before; else `convolution` does it.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: PixelPadding = ((0, 0), (0, 0))
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    convolution: Callable[..., Array] = lax.conv_general_dilated
    round_kernel: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Returns the convolution with `kernel`, plus `bias`.

        Args:
          x: Feature map.
        """
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, rounded, _ = promote_dtype(x, kernel, bias, dtype=self.dtype)
        kernel = rounded if self.round_kernel else kernel
        strides = (self.strides, self.strides)

        def convolve(x: Array, kernel: Array) -> Array:
            return self.convolution(x, kernel, strides, self.padding, dimension_numbers=LAYOUT)

        return convolve(x, kernel) if bias is None else _plus_bias(convolve, x, kernel, bias)


def _product(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def _plus_bias(function: Callable[[Array, Array], Array], x: Array, kernel: Array, bias: Array) -> Array:
    """Returns `function(x, kernel)` plus the bias, in half precision rounded once on a CPU, as PyTorch does there.

    On a CPU half precision is computed in float32 in any case; on an accelerator the compiler fuses the sum as it is
    written.  Derivatives are those of the sum.
    """

    def as_written(x: Array, kernel: Array, bias: Array) -> Array:
        return add(function(x, kernel), bias)

    def rounded_once(x: Array, kernel: Array, bias: Array) -> Array:
        arrays = (x, kernel.astype(x.dtype), bias)
        return as_written(*(array.astype(jnp.float32) for array in arrays)).astype(x.dtype)

    if x.dtype.itemsize >= 4:
        return as_written(x, kernel, bias)

    @jax.custom_jvp
    def sum_of(*arrays: Array) -> Array:
        return lax.platform_dependent(*arrays, cpu=rounded_once, default=as_written)

    def rule(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
        moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero)]

        def of_moving(*moved: Array) -> Array:
            new = dict(zip(moving, moved, strict=True))
            return as_written(*(new.get(i, primal) for i, primal in enumerate(primals)))

        _, tangent = jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])
        return sum_of(*primals), tangent

    sum_of.defjvp(rule, symbolic_zeros=True)
    return sum_of(x, kernel, bias)
