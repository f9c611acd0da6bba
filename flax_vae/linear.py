"""Dense layer and convolution with linen's parameters; gradients of their biases are summed in float32 at least."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype
from jax import lax
from jaxtyping import Array, Float

from flax_vae.broadcast import add

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
        """Returns the product with `kernel`, plus `bias`."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype)
        x, kernel, _ = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return add(lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ()))), bias)


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
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    convolution: Callable[..., Array] = lax.conv_general_dilated

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        """Returns the convolution with `kernel`, plus `bias`."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, _ = promote_dtype(x, kernel, bias, dtype=self.dtype)
        strides = (self.strides, self.strides)
        x = self.convolution(x, kernel, strides, self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return x if bias is None else add(x, bias)
