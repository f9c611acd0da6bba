"""Checksums of a state, to compare copies that should be equal without moving them."""

import hashlib
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_AXIS = "copies"


def checksums(tree: Any) -> dict[str, str]:
    """Returns a checksum of each leaf that is replicated, by its path.

    Each of this process's devices computes the checksum of its copy; copies that differ in one bit have different
    checksums.  Sharded leaves are left out.

    Args:
      tree: A pytree of jax or numpy arrays.

    Returns:
      Checksums by path; if the copies of this process's devices differ, the text names all of them.
    """
    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not isinstance(leaf, jax.Array):
            found[name] = hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()[:16]
        elif leaf.is_fully_replicated:
            found[name] = _of_copies(leaf)
    return {name: value if isinstance(value, str) else _text(value) for name, value in jax.device_get(found).items()}


def _of_copies(leaf: jax.Array) -> jax.Array:
    """Returns two words for each copy of this process."""
    shards = leaf.addressable_shards
    mesh = Mesh(np.array([shard.device for shard in shards]), (_AXIS,))
    place = NamedSharding(mesh, PartitionSpec())
    copies = jax.make_array_from_single_device_arrays(leaf.shape, place, [shard.data for shard in shards])
    return _compiled(mesh)(copies)


@lru_cache
def _compiled(mesh: Mesh) -> Any:
    # Each device sums its own copy; a plain program could use one copy for all.
    return jax.jit(
        jax.shard_map(_words, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(_AXIS), check_vma=False)
    )


def _words(leaf: jax.Array) -> jax.Array:
    """Returns two sums of hashed words of the leaf, modulo 2**32; the result does not depend on the order."""
    bits = jnp.uint8 if leaf.dtype == jnp.bool_ else jnp.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")
    words = jax.lax.bitcast_convert_type(leaf.astype(bits) if leaf.dtype == jnp.bool_ else leaf, bits)
    words = words.ravel().astype(jnp.uint32)
    places = jax.lax.iota(jnp.uint32, words.size)
    sums = [_mix(words ^ _mix(places + start)).sum(dtype=jnp.uint32) for start in (np.uint32(1), np.uint32(1 << 31))]
    return jnp.stack(sums)[None]


def _mix(words: jax.Array) -> jax.Array:
    """Returns hashed words, every bit of which depends on all bits of the input.

    Source: Appleby, MurmurHash3, the finaliser of 32 bits.
    """
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    return words ^ (words >> 16)


def _text(words: np.ndarray) -> str:
    """Returns the checksum, or all checksums if they differ."""
    texts = [f"{first:08x}{second:08x}" for first, second in words.tolist()]
    return texts[0] if len(set(texts)) == 1 else f"{' and '.join(texts)} on its devices"
