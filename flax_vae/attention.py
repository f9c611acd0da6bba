"""Scaled dot-product attention of one head: one function, and the ways to compute it."""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_vae.ops import Tile, tiled_attention

AttentionPath = Literal["auto", "full", "tiles", "cudnn"]

# On a CPU a tile of scores should stay in the cache: 4 MB of float32 is the fastest measured, forwards and backwards,
# with 64 to 512 channels.  What fits one tile needs no tiles.
CPU_TILE = Tile(queries=1024, keys=1024)

# On an accelerator products should be large: all queries at once, and as many keys as this many bytes of scores allow.
SCORES_BYTES = 2**28

# What cuDNN's kernels take (its own limit is 256 on the newest cards only).
CUDNN_CHANNELS = 128


def attention(
    q: Float[Array, "b n c"],
    k: Float[Array, "b m c"],
    v: Float[Array, "b m c"],
    *,
    path: AttentionPath = "auto",
    scores_bytes: int = SCORES_BYTES,
) -> Float[Array, "b n c"]:
    """Returns `softmax(q kᵀ / sqrt(c)) v`.

    Every path keeps scores and softmax in float32 at least, so that half precision costs digits in the inputs only and
    no product overflows; the numbers are the same up to rounding.

    Args:
      q: queries.
      k: keys.
      v: values.
      path: `"full"` holds all n x m scores at once, in the backward pass too; `"tiles"` never does, and needs memory
        linear in n and m; `"cudnn"` is cuDNN's kernel, for half precision and at most 128 channels on an NVIDIA GPU,
        which has neither forward mode nor second derivatives (take `"tiles"` for these);
        `"auto"` takes cuDNN where it can, the full matrix while it is small, and tiles otherwise.
      scores_bytes: how many bytes of scores may exist at once on an accelerator.

    Raises:
      ValueError: if `path` is none of the four.

    Source: seed module 2.  Twin: `torch_ref.attention`.
    """
    if path not in get_args(AttentionPath):
        raise ValueError(f"attention path={path!r} must be one of {', '.join(map(repr, get_args(AttentionPath)))}")
    if path == "cudnn" or (path == "auto" and _cudnn_takes(q)):
        # It wants an axis of heads, of which there is one.
        q, k, v = (x[:, :, None] for x in (q, k, v))
        return jnp.asarray(jax.nn.dot_product_attention(q, k, v, implementation="cudnn"))[:, :, 0]
    if path == "full":
        return full_attention(q, k, v)
    return _by_platform(q, k, v, path == "auto", CPU_TILE, scores_bytes)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))  # a model has many of the same shape, which are traced once
def _by_platform(q: Array, k: Array, v: Array, small_in_full: bool, cpu_tile: Tile, scores_bytes: int) -> Array:
    def on_cpu(q: Array, k: Array, v: Array) -> Array:
        if small_in_full and max(q.shape[1], k.shape[1]) <= cpu_tile.keys:
            return full_attention(q, k, v)
        # One image after the other: several tiles at a time would drive each other out of the cache.

        def one_image(qkv: tuple[Array, Array, Array]) -> Array:
            q, k, v = qkv
            return jnp.squeeze(tiled_attention(q[None], k[None], v[None], cpu_tile), 0)

        return jax.lax.map(one_image, (q, k, v)) if len(q) > 1 else tiled_attention(q, k, v, cpu_tile)

    def elsewhere(q: Array, k: Array, v: Array) -> Array:
        keys = scores_bytes // (q.shape[0] * q.shape[1] * jnp.promote_types(q.dtype, jnp.float32).itemsize)
        if small_in_full and k.shape[1] <= keys:
            return full_attention(q, k, v)
        return tiled_attention(q, k, v, Tile(queries=q.shape[1], keys=max(keys, 128)))

    return jax.lax.platform_dependent(q, k, v, cpu=on_cpu, default=elsewhere)


def full_attention(
    q: Float[Array, "b n c"], k: Float[Array, "b m c"], v: Float[Array, "b m c"]
) -> Float[Array, "b n c"]:
    """Returns `softmax(q kᵀ / sqrt(c)) v`, the full matrix at once."""
    scores_dtype = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bnc,bmc->bnm", q, k, preferred_element_type=scores_dtype) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bnm,bmc->bnc", weights, v)


def _cudnn_takes(q: Array) -> bool:
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and q.shape[-1] % 8 == 0 and q.shape[-1] <= CUDNN_CHANNELS and jax.default_backend() == "gpu"
