"""Attention that never holds all scores at once, in the forward or the backward pass.

The scores are computed a tile at a time.  Over the tiles of keys, each query keeps its largest score so far, the sum of
the exponentials and the weighted sum of the values; a larger score rescales both sums.  For the backward pass it keeps
one number per query, the logarithm of the sum, and computes each tile again.

Source: Milakov and Gimelshein 2018 (arXiv:1805.02867) for the running maximum; Rabe and Staats 2021
(arXiv:2112.05682) and Dao et al. 2022 (arXiv:2205.14135) for the tiles and the backward pass.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flax_vae.ops.linear_maps import Arrays, linear, vary_together


class Tile(NamedTuple):
    """Size of a tile of scores.

    Attributes:
      queries: Number of queries.
      keys: Number of keys.
    """

    queries: int
    keys: int


@functools.partial(jax.jit, static_argnames="tile")  # a model attends often with one shape, which is traced once
def tiled_attention(
    q: Float[Array, "b n c"], k: Float[Array, "b m c"], v: Float[Array, "b m c"], tile: Tile
) -> Float[Array, "b n c"]:
    """Returns `softmax(q kᵀ / sqrt(c)) v` in memory linear in n and m.

    Args:
      q: Queries.
      k: Keys.
      v: Values.
      tile: Largest size of a tile; queries and keys are divided as evenly as that allows.
    """
    return _attend(q, k, v, tile)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _attend(q: Array, k: Array, v: Array, tile: Tile) -> tuple[Array, Array, Array]:
    """Returns the attention, its rounding error in half precision, and each query's logarithm of the sum.

    The backward pass subtracts a sum over the attention from gradients that nearly cancel.  With the rounded attention
    alone, the gradient of the keys' bias would not be zero.  Without rounding the second array has no channels.
    """
    q, k, v = vary_together(q, k, v)
    scores_dtype, scale = jnp.promote_types(q.dtype, jnp.float32), _scale(q)
    keys, values, bias = _cut(k, tile.keys), _cut(v, tile.keys), _padding_bias(k.shape[1], tile.keys, scores_dtype)

    def some_queries(q: Array) -> tuple[Array, Array, Array]:
        def meet(carry: tuple[Array, Array, Array], keys: tuple[Array, Array, Array | None]):
            largest, total, out = carry
            k, v, bias = keys
            scores = _scores(q, k, bias, scores_dtype)
            larger = jnp.maximum(largest, scores.max(-1))
            # Scaling here takes one pass with the exponential; it does not change which score is the largest.
            weights = jnp.exp((scores - larger[..., None]) * scale)
            shrink = jnp.exp((largest - larger) * scale)
            total = shrink * total + weights.sum(-1)
            out = shrink[..., None] * out + _product("bnm,bmc->bnc", weights.astype(v.dtype), v)
            return (larger, total, out), None

        rows = q.shape[:2]
        none = jnp.zeros(rows, scores_dtype)
        largest, total, out, _ = vary_together(jnp.full_like(none, -jnp.inf), none, jnp.zeros(q.shape, scores_dtype), q)
        (largest, total, out), _ = lax.scan(meet, (largest, total, out), (keys, values, bias))
        out = out / total[..., None]
        rounded = out.astype(v.dtype)
        lost = (out - rounded).astype(v.dtype)
        return rounded, lost if rounded.dtype != out.dtype else lost[..., :0], largest * scale + jnp.log(total)

    queries = _cut(q, tile.queries)
    if len(queries) == 1:  # no loop to compile
        return some_queries(queries[0])
    out, lost, log_total = lax.map(some_queries, queries)
    return _join(out, q.shape[1]), _join(lost, q.shape[1]), _join(log_total, q.shape[1])


@functools.partial(_attend.defjvp, symbolic_zeros=True)
def _rule(tile: Tile, primals: tuple[Array, Array, Array], tangents: tuple[Any, ...]) -> tuple[Arrays, Arrays]:
    q, k, v = primals
    out = _attend(q, k, v, tile)  # pyright: ignore[reportCallIssue]: it does not know of nondiff_argnums
    tangents_of, cotangents_of = (functools.partial(way, tile) for way in (_tangents, _cotangents))
    return out, linear(tangents_of, cotangents_of, (q, k, v, *out), tangents, like=out)


def _tangents(tile: Tile, kept: Arrays, tangents: Arrays) -> Arrays:
    q, k, v, out, lost, log_total = kept
    d_q, d_k, d_v = tangents
    scores_dtype, scale = log_total.dtype, _scale(q)
    bias = _padding_bias(k.shape[1], tile.keys, scores_dtype)
    keys = tuple(_cut(x, tile.keys) for x in (k, v, d_k, d_v))

    def some_queries(queries: Arrays) -> tuple[Array, Array]:
        q, d_q, out, log_total = queries

        @jax.checkpoint  # so that its derivative in reverse mode does not keep the scores either
        def meet(carry: tuple[Array, Array], keys: tuple[Arrays, Array | None]):
            d_out, d_log_total = carry
            (k, v, d_k, d_v), bias = keys
            weights = jnp.exp(_scores(q, k, bias, scores_dtype) * scale - log_total[..., None])
            d_scores = _scores(d_q, k, None, scores_dtype) + _scores(q, d_k, None, scores_dtype)
            d_weights = weights * d_scores * scale
            d_out += _product("bnm,bmc->bnc", d_weights.astype(v.dtype), v)
            d_out += _product("bnm,bmc->bnc", weights.astype(v.dtype), d_v)
            return (d_out, d_log_total + d_weights.sum(-1)), None

        d_out, d_log_total, _ = vary_together(jnp.zeros(out.shape, scores_dtype), jnp.zeros_like(log_total), q)
        (d_out, d_log_total), _ = lax.scan(meet, (d_out, d_log_total), (keys, bias))
        return (d_out - d_log_total[..., None] * out).astype(out.dtype), d_log_total

    queries = tuple(_cut(x, tile.queries) for x in (q, d_q, out, log_total))
    d_out, d_log_total = lax.map(some_queries, queries)
    return _join(d_out, q.shape[1]), jnp.zeros_like(lost), _join(d_log_total, q.shape[1])


def _cotangents(tile: Tile, kept: Arrays, cotangents: Arrays) -> Arrays:
    q, k, v, out, lost, log_total = kept
    d_out, _, d_log_total = cotangents
    scores_dtype, scale = log_total.dtype, _scale(q)
    keys, values, bias = _cut(k, tile.keys), _cut(v, tile.keys), _padding_bias(k.shape[1], tile.keys, scores_dtype)
    # The softmax subtracts from the gradient of each weight its mean over the keys, weighted with the weights.
    pull = jnp.einsum("bnc,bnc->bn", d_out, out, preferred_element_type=scores_dtype) - d_log_total
    if lost.shape[-1]:
        pull += jnp.einsum("bnc,bnc->bn", d_out, lost, preferred_element_type=scores_dtype)

    def some_queries(d_kv: tuple[Array, Array], queries: tuple[Array, ...]):
        q, d_out, log_total, pull = queries

        @jax.checkpoint
        def meet(d_q: Array, keys: tuple[Array, Array, Array | None, Array, Array]):
            k, v, bias, d_k, d_v = keys
            weights = jnp.exp(_scores(q, k, bias, scores_dtype) * scale - log_total[..., None])
            d_v += _product("bnc,bnm->bcm", d_out, weights.astype(v.dtype))
            d_weights = _product("bnc,bmc->bnm", d_out, v)
            d_scores = (weights * (d_weights - pull[..., None]) * scale).astype(q.dtype)
            d_k += _product("bnc,bnm->bcm", q, d_scores)
            return d_q + _product("bnm,bmc->bnc", d_scores, k), (d_k, d_v)

        start, _ = vary_together(jnp.zeros(q.shape, scores_dtype), q)
        d_q, d_kv = lax.scan(meet, start, (keys, values, bias, *d_kv))
        return d_kv, d_q

    queries = tuple(_cut(x, tile.queries) for x in (q, d_out, log_total, pull))
    # Both sums have the channels first: a CPU multiplies (c, n) by (n, m) four times as fast as the reverse.
    d_k, d_v, _ = vary_together(jnp.zeros_like(keys.mT, scores_dtype), jnp.zeros_like(values.mT, scores_dtype), q)
    (d_k, d_v), d_q = lax.scan(some_queries, (d_k, d_v), queries)
    n, m = q.shape[1], k.shape[1]
    return _join(d_q, n).astype(q.dtype), _join(d_k.mT, m).astype(k.dtype), _join(d_v.mT, m).astype(v.dtype)


def _scale(q: Array) -> float:
    return q.shape[-1] ** -0.5


def _scores(q: Array, k: Array, bias: Array | None, dtype: jnp.dtype) -> Array:
    """Returns the scores before scaling."""
    scores = jnp.einsum("bnc,bmc->bnm", q, k, preferred_element_type=dtype)
    return scores if bias is None else scores + bias[None, None]


def _product(equation: str, x: Array, y: Array) -> Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def _cut(x: Array, longest: int) -> Array:
    """Cuts `b n ...` into `t b n/t ...`: the fewest pieces that are short enough, padded with zeros to equal length."""
    pieces = -(-x.shape[1] // longest)
    length = -(-x.shape[1] // pieces)
    padding = pieces * length - x.shape[1]
    if padding:
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], pieces, length, *x.shape[2:]), 1, 0)


def _join(pieces: Array, n: int) -> Array:
    """Joins pieces of `_cut` and removes their padding."""
    x = jnp.moveaxis(pieces, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])[:, :n]


def _padding_bias(m: int, longest: int, dtype: jnp.dtype) -> Array | None:
    """Returns minus infinity for the keys that `_cut` added and zero for the others; None if it adds none."""
    pieces = -(-m // longest)
    length = -(-m // pieces)
    if pieces * length == m:
        return None
    return jnp.where(jnp.arange(pieces * length) < m, 0.0, -jnp.inf).astype(dtype).reshape(pieces, length)
