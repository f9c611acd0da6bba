"""Single-head scaled dot-product attention, and the paths that compute it.

Twins: `torch_ref.attention` and `flax_vae.attention`.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_vae.convert.errors import ArgumentError
from flax_vae.ops import Tile, tiled_attention

AttentionPath = Literal["auto", "full", "tiles", "cudnn"]

# On a CPU a tile of scores should stay in the cache: 4 MB of float32 were the fastest in the forward and the backward
# pass, with 64 to 512 channels.
CPU_TILE = Tile(queries=1024, keys=1024)

# On an accelerator products should be large: all queries at once, and as many keys as fit these bytes of scores.
SCORES_BYTES = 2**28

# Most channels of cuDNN's kernels (256 on the newest cards only).
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

    Every path computes scores and softmax in at least float32, so half precision loses digits only in the inputs and
    no product overflows.  Results of all paths are equal up to rounding.

    Args:
      q: Queries.
      k: Keys.
      v: Values.
      path: Path of the computation.  `"full"` holds all n x m scores at once, also in the backward pass.  `"tiles"`
        needs memory linear in n and m.  `"cudnn"` is cuDNN's kernel, for half precision and at most 128 channels on an
        NVIDIA GPU; it has neither forward mode nor second derivatives.  `"auto"` uses cuDNN where it is available, the
        full matrix while it is small, and tiles otherwise.
      scores_bytes: Bytes of scores that may exist at once on an accelerator.

    Raises:
      ValueError: If `path` is unknown.

    Source: seed module 2.
    """
    if path not in get_args(AttentionPath):
        raise ArgumentError(f"attention path={path!r} must be one of {', '.join(map(repr, get_args(AttentionPath)))}")
    if path == "cudnn" or (path == "auto" and _cudnn_takes(q)):
        # Its arguments have an axis of heads.
        q, k, v = (x[:, :, None] for x in (q, k, v))
        return jnp.asarray(jax.nn.dot_product_attention(q, k, v, implementation="cudnn"))[:, :, 0]
    if path == "full":
        return full_attention(q, k, v)
    return _by_platform(q, k, v, path == "auto", CPU_TILE, scores_bytes)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))  # a model attends often with one shape, which is traced once
def _by_platform(q: Array, k: Array, v: Array, small_in_full: bool, cpu_tile: Tile, scores_bytes: int) -> Array:
    def on_cpu(q: Array, k: Array, v: Array) -> Array:
        if small_in_full and max(q.shape[1], k.shape[1]) <= cpu_tile.keys:
            return full_attention(q, k, v)
        # One image after the other: tiles of several images would not fit the cache together.

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
    """Returns `softmax(q kᵀ / sqrt(c)) v`, computed with the full matrix of scores."""
    scores_dtype = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bnc,bmc->bnm", q, k, preferred_element_type=scores_dtype) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bnm,bmc->bnc", weights, v)


def _cudnn_takes(q: Array) -> bool:
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and q.shape[-1] % 8 == 0 and q.shape[-1] <= CUDNN_CHANNELS and jax.default_backend() == "gpu"
