"""Scaled dot-product attention of one head."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attention(q: Float[Array, "b n c"], k: Float[Array, "b m c"], v: Float[Array, "b m c"]) -> Float[Array, "b n c"]:
    """Returns `softmax(q kᵀ / sqrt(c)) v`, the full matrix at once.

    The scores and their softmax are kept in float32 at least, so that half precision costs digits in the inputs only.

    Source: seed module 2.  Twin: `torch_ref.attention`.
    """
    scores_dtype = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bnc,bmc->bnm", q, k, preferred_element_type=scores_dtype) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bnm,bmc->bnc", weights, v)
