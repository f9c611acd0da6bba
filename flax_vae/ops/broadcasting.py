"""Broadcasting whose gradient is summed in float32, in half precision too.

The gradient of a broadcast value is the sum of the gradients of its copies.  JAX sums in the dtype of the copies; in
bfloat16 a sum of equal values stops growing at 256 of them.
"""

import functools

import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from flax_vae.ops.linear_maps import Arrays, linear


def broadcast(x: Float[Array, "..."], shape: tuple[int, ...], dtype: Dtype | None = None) -> Float[Array, "..."]:
    """Returns `jnp.broadcast_to(x, shape)` in the given dtype, with a gradient that is summed in float32 at least.

    Args:
      x: Array of as many axes as the result, or fewer; missing ones are the first.
      shape: Shape of the result.
      dtype: Dtype of the result; None keeps that of `x`.
    """
    to, back = jnp.dtype(dtype or x.dtype), jnp.dtype(x.dtype)
    if x.shape == shape:
        return x.astype(to)
    copy, total = functools.partial(_copy, shape, to), functools.partial(_sum, x.shape, back)
    return linear(copy, total, (), (x,), like=(jax.ShapeDtypeStruct(shape, to),))[0]


def add(x: Float[Array, "*b c"], bias: Float[Array, "..."]) -> Float[Array, "*b c"]:
    """Returns `x + bias`, the bias broadcast to the shape of `x` in its dtype.

    Args:
      x: Array.
      bias: Bias of each channel, or with axes of its own.
    """
    return x + broadcast(bias, x.shape, x.dtype)


def _copy(shape: tuple[int, ...], dtype: jnp.dtype, _: Arrays, arrays: Arrays) -> Arrays:
    (x,) = arrays
    return (jnp.broadcast_to(x.astype(dtype), shape),)


def _sum(shape: tuple[int, ...], dtype: jnp.dtype, _: Arrays, arrays: Arrays) -> Arrays:
    (d_out,) = arrays
    missing = d_out.ndim - len(shape)
    copied = [axis for axis, size in enumerate(d_out.shape) if axis < missing or shape[axis - missing] != size]
    total = jnp.sum(d_out, copied, dtype=jnp.promote_types(d_out.dtype, jnp.float32))
    return (total.reshape(shape).astype(dtype),)
