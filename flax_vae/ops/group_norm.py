"""Group normalisation, alone or followed by swish, that keeps nothing but its input for the backward pass."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype
from jax import lax
from jaxtyping import Array, Float

from flax_vae.ops.linear_maps import Arrays, linear


class GroupNorm(nn.Module):
    """Normalises every group of channels of every image to mean 0 and variance 1, then scales and shifts each channel.

    Statistics are computed in at least float32, and the variance around the mean.  (Linen's module subtracts the square
    of the mean from the mean of the squares by default, which loses digits where the mean is large.)

    Attributes:
      num_groups: Number of groups of neighbouring channels.
      epsilon: Constant added to the variance.
      dtype: Dtype of the result; None infers it from input and parameters.
      param_dtype: Dtype of `scale` and `bias`.

    Source: Wu and He 2018 (arXiv:1803.08494).  Twin: `torch.nn.GroupNorm`.
    """

    num_groups: int
    epsilon: float
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns the normalised map.

        Args:
          x: Feature map.
        """
        return self._normalise(x, activate=False)

    def with_swish(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Returns `swish` of the normalised map, computed in one pass that keeps only `x` for the backward pass.

        Args:
          x: Feature map.
        """
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "__call__", self(x))  # as if the module had been called
        return self._normalise(x, activate=True)

    @nn.compact
    def _normalise(self, x: Array, activate: bool) -> Array:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), self.param_dtype)
        (dtype,) = {array.dtype for array in promote_dtype(x, scale, bias, dtype=self.dtype)}
        return jnp.asarray(_group_norm(x, scale, bias, self.num_groups, self.epsilon, activate), dtype)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))  # a model normalises often with one shape, which is traced once
def _group_norm(x: Array, scale: Array, bias: Array, groups: int, epsilon: float, activate: bool) -> Array:
    return _with_derivatives(x, scale, bias, groups, epsilon, activate)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _with_derivatives(x: Array, scale: Array, bias: Array, groups: int, epsilon: float, activate: bool) -> Array:
    return _forward(x, scale, bias, groups, epsilon, activate)[0]


def _forward(x: Array, scale: Array, bias: Array, groups: int, epsilon: float, activate: bool):
    mean, rstd = statistics(x, groups, epsilon)
    y = (x - _per_channel(mean)) * _per_channel(rstd * scale[None]) + _per_channel(bias)
    return y * jax.nn.sigmoid(y) if activate else y, (x, scale, bias, mean, rstd)


@functools.partial(_with_derivatives.defjvp, symbolic_zeros=True)
def _rule(groups: int, epsilon: float, activate: bool, primals: tuple[Array, Array, Array], tangents: tuple[Any, ...]):
    x, scale, bias = primals
    out, kept = _forward(x, scale, bias, groups, epsilon, activate)
    tangent, cotangent = (functools.partial(way, groups, activate) for way in (_tangent, _cotangent))
    (d_out,) = linear(tangent, cotangent, kept, tangents, like=(out,))
    return out, d_out


def _tangent(groups: int, activate: bool, kept: Arrays, tangents: Arrays) -> Arrays:
    x, scale, bias, mean, rstd = kept
    d_x, d_scale, d_bias = tangents
    normalised = (x - _per_channel(mean)) * _per_channel(rstd)
    d_x = d_x.astype(normalised.dtype)
    along_mean = _group_mean(d_x.mean((1, 2)), groups)
    along_std = _group_mean((d_x * normalised).mean((1, 2)), groups)
    d_normalised = _per_channel(rstd) * (d_x - _per_channel(along_mean) - normalised * _per_channel(along_std))
    d_out = d_normalised * _per_channel(scale) + normalised * _per_channel(d_scale) + _per_channel(d_bias)
    if activate:
        y = normalised * _per_channel(scale) + _per_channel(bias)
        gate = jax.nn.sigmoid(y)
        d_out = d_out * gate * (1 + y * (1 - gate))
    return (d_out,)


def _cotangent(groups: int, activate: bool, kept: Arrays, cotangents: Arrays) -> Arrays:
    x, scale, bias, mean, rstd = kept
    (d_out,) = cotangents
    normalised = (x - _per_channel(mean)) * _per_channel(rstd)
    if activate:
        y = normalised * _per_channel(scale) + _per_channel(bias)
        gate = jax.nn.sigmoid(y)
        d_out = d_out * gate * (1 + y * (1 - gate))
    d_bias = d_out.sum((1, 2))
    d_scale = (d_out * normalised).sum((1, 2))
    # Mean and variance depend on every value, so the gradient has no component along either.
    count = x.shape[1] * x.shape[2]
    along_mean = _group_mean(d_bias * scale[None] / count, groups)
    along_std = _group_mean(d_scale * scale[None] / count, groups)
    d_x = _per_channel(rstd) * (
        d_out * _per_channel(scale) - _per_channel(along_mean) - normalised * _per_channel(along_std)
    )
    return d_x.astype(x.dtype), d_scale.sum(0).astype(scale.dtype), d_bias.sum(0).astype(bias.dtype)


def statistics(x: Float[Array, "b h w c"], groups: int, epsilon: float) -> tuple[Array, Array]:
    """Returns mean and reciprocal standard deviation of each channel's group, both `b c`.

    Sums over the positions of each channel first, because processors are slow at sums over the few channels of a group.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean, variance = lax.platform_dependent(
        x, cpu=functools.partial(_moments, groups, False), default=functools.partial(_moments, groups, True)
    )
    return mean, lax.rsqrt(variance + epsilon)


def _moments(groups: int, corrected: bool, x: Float[Array, "b h w c"]) -> tuple[Array, Array]:
    """Returns mean and variance of each channel's group.

    Args:
      groups: Number of groups.
      corrected: Whether the mean difference from the mean, which the pass for the variance sums too, is added to it.
        An accelerator may add numbers one after the other, which costs the mean of 4,096 numbers around 10,000 up to
        0.006; the order of XLA's sums on a CPU costs 0.0003.
      x: Map.
    """
    mean = _group_mean(x.mean((1, 2)), groups)
    apart = x - _per_channel(mean)
    variance = _group_mean(jnp.square(apart).mean((1, 2)), groups)
    if corrected:
        rest = _group_mean(apart.mean((1, 2)), groups)
        mean, variance = mean + rest, jnp.maximum(variance - jnp.square(rest), 0)
    return mean, variance


def _group_mean(per_channel: Float[Array, "b c"], groups: int) -> Float[Array, "b c"]:
    b, c = per_channel.shape
    mean = per_channel.reshape(b, groups, c // groups).mean(-1)
    return jnp.repeat(mean, c // groups, axis=-1)


def _per_channel(values: Array) -> Array:
    """Reshapes `c` or `b c` to broadcast against `b h w c`."""
    return values.reshape(-1, 1, 1, values.shape[-1])
