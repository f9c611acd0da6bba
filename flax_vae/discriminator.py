"""The PatchGAN discriminator: classifies patches of an image instead of the whole image.

Shapes: `b` batch, `c` channels, `h w` height and width.  Feature maps are `b c h w` in PyTorch and `b h w c` in Flax.
Twins: `torch_ref.discriminator` and `flax_vae.discriminator`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype
from jaxtyping import Array, Float

from flax_vae.convert.architecture import KERNEL, DiscriminatorParams
from flax_vae.convert.errors import ArgumentError
from flax_vae.ops import Conv, convolve

NORM_EPS = 1e-5
MOMENTUM = 0.1  # weight of the new batch in the running statistics
SLOPE = 0.2
STD = 0.02  # standard deviation of initial kernels (mean 0) and scales (mean 1)


def leaky_relu(x: Array) -> Array:
    """Returns `x` where it is positive and `0.2 x` elsewhere."""
    # `jax.nn.leaky_relu` has slope 1 at zero, PyTorch has 0.2 there.  In bfloat16, 0.2 is rounded up by 0.1 %.
    at_least_float32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.where(x > 0, x, (SLOPE * at_least_float32).astype(x.dtype))


def conv(in_channels: int, features: int, stride: int, dtype: Dtype | None, param_dtype: Dtype, *, bias: bool) -> Conv:
    """Returns a 4x4 convolution with one pixel of padding; its bias is initialised as in PyTorch, as in the source."""
    bound = (KERNEL * KERNEL * in_channels) ** -0.5

    def uniform(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Conv(
        features,
        (KERNEL, KERNEL),
        strides=stride,
        padding=((1, 1), (1, 1)),
        use_bias=bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=nn.initializers.normal(STD),
        bias_init=uniform,
        convolution=convolve,
    )


def unbiased(variance: Array, count: int) -> Array:
    """Returns the unbiased estimate of a variance, from the biased one of `count` values."""
    return variance * (count / (count - 1))


class BatchNorm(nn.Module):
    """Normalises every channel over batch and positions to mean 0 and variance 1, then scales and shifts it.

    The running variance is the unbiased one, `n / (n - 1)` times the variance of the normalisation, as in PyTorch;
    linen's module keeps the biased one.  Statistics are computed in at least float32, the variance around the mean.
    They are shared by all devices, so `n` counts the values of the whole batch.

    Attributes:
      channels: Channels of input and output.
      axis_name: Name of the axis of devices, under pmap only.
      dtype: Dtype of the result; None infers it from input and parameters.
      param_dtype: Dtype of `scale` and `bias`.

    Source: Ioffe and Szegedy 2015 (arXiv:1502.03167).
    """

    channels: int
    axis_name: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def setup(self):
        statistic = jnp.promote_types(self.param_dtype, jnp.float32)
        self.scale = self.param("scale", _about_one, (self.channels,), self.param_dtype)
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,), self.param_dtype)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, (self.channels,), statistic)
        self.var = self.variable("batch_stats", "var", jnp.ones, (self.channels,), statistic)
        self.count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)  # number of batches, as in PyTorch

    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        """Returns the normalised feature map.

        Args:
          x: Feature map; under pmap this device's share of the batch.
          train: Whether to normalise with the statistics of the batch, and to update the running ones if the collection
            `batch_stats` is mutable; otherwise uses the running ones.

        Raises:
          ValueError: In training, if the batch has a single value per channel.
        """
        (dtype,) = {array.dtype for array in promote_dtype(x, self.scale, self.bias, dtype=self.dtype)}
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean, var = self._of_batch(x) if train else (self.mean.value, self.var.value)
        rstd = jax.lax.rsqrt(var + NORM_EPS)
        return jnp.asarray((x - _per_channel(mean)) * _per_channel(rstd * self.scale) + _per_channel(self.bias), dtype)

    def _of_batch(self, x: Array) -> tuple[Array, Array]:
        # `init` runs on one device, without the axis.
        axis_name = None if self.is_initializing() else self.axis_name
        count = x.size // x.shape[-1]
        if axis_name is not None:
            count *= jax.lax.axis_size(axis_name)
        if count == 1:
            raise ArgumentError(
                f"a feature map of shape {x.shape} has one value per channel; a variance needs two or more; train with "
                "more or larger images"
            )

        def average(values: Array) -> Array:
            here = values.mean((0, 1, 2))
            return here if axis_name is None else jax.lax.pmean(here, axis_name)

        mean = average(x)
        var = average(jnp.square(x - _per_channel(mean)))
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            for running, new in ((self.mean, mean), (self.var, unbiased(var, count))):
                running.value = (1 - MOMENTUM) * running.value + MOMENTUM * jax.lax.stop_gradient(new)
            self.count.value += 1
        return mean, var


class Discriminator(nn.Module):
    """Computes a logit for every patch of an image; positive means real.

    The first convolution is not normalised and the last returns the logits; a batch norm follows each of the others.

    Attributes:
      params: Architecture; see `flax_vae.convert.architecture.DiscriminatorParams`.
      axis_name: Name of the axis of devices, under pmap only; they share the statistics of the batch.
      dtype: Computation dtype, except of the statistics; None infers it from inputs and parameters.
      param_dtype: Dtype of the parameters.

    Source: Isola et al. 2017 (arXiv:1611.07004); CompVis/taming-transformers `NLayerDiscriminator`.

    Examples:
      >>> model = Discriminator(DiscriminatorParams())
      >>> images = jnp.zeros((2, 64, 64, 3))
      >>> variables = model.init(jax.random.key(0), images, train=True)  # {"params": ..., "batch_stats": ...}
      >>> logits, moved = model.apply(variables, images, train=True, mutable=["batch_stats"])
    """

    params: DiscriminatorParams
    axis_name: str | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def setup(self):
        params, dtypes = self.params, (self.dtype, self.param_dtype)
        first, *widths = params.widths
        main: list[Any] = [conv(params.in_channels, first, params.strides[0], *dtypes, bias=True), leaky_relu]
        for i, o, stride in zip(params.widths, widths, params.strides[1:], strict=False):
            main += [conv(i, o, stride, *dtypes, bias=False), BatchNorm(o, self.axis_name, *dtypes), leaky_relu]
        self.main = [*main, conv(params.widths[-1], 1, 1, *dtypes, bias=True)]

    def __call__(self, images: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h2 w2 1"]:
        """Returns the logits of images in [-1, 1].

        Args:
          images: Images; under pmap this device's share of the batch.
          train: Whether to normalise with the statistics of the batch, and to update the running ones if the collection
            `batch_stats` is mutable; otherwise uses the running ones.

        Raises:
          ValueError: If the images have wrong channels or are too small, or, in training, if a layer has a single value
            per channel in the batch.
        """
        self.params.check_images(images, "b h w c")
        x = images
        for layer in self.main:
            x = layer(x, train) if isinstance(layer, BatchNorm) else layer(x)
        return x


def _about_one(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return 1 + STD * jax.random.normal(key, shape, dtype)


def _per_channel(values: Array) -> Array:
    return values[None, None, None, :]
