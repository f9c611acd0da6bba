"""File formats of named tensors: safetensors, PyTorch pickles, Flax msgpack, and weights split into shards.

NumPy only; imports `flax_vae.convert.files`.  Used by `flax_vae.convert.weights`, which chooses the format.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.convert.formats.content import content_of, foreign
    from flax_vae.convert.formats.header import DIGEST, fingerprint
    from flax_vae.convert.formats.lazy import FLOATS, Deferred, apply, cast, dtype_name, is_floating
    from flax_vae.convert.formats.msgpack import read_msgpack, write_msgpack
    from flax_vae.convert.formats.pytorch import BIT_PATTERNS, read_pickle, to_array
    from flax_vae.convert.formats.safetensors import ArrayLike, list_tensors, read_metadata, read_tensors, write_tensors
    from flax_vae.convert.formats.sharded import is_index, read_shard_index, read_shards
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "ArrayLike",
    "BIT_PATTERNS",
    "DIGEST",
    "Deferred",
    "FLOATS",
    "apply",
    "cast",
    "content_of",
    "dtype_name",
    "fingerprint",
    "foreign",
    "is_floating",
    "is_index",
    "list_tensors",
    "read_metadata",
    "read_msgpack",
    "read_pickle",
    "read_shard_index",
    "read_shards",
    "read_tensors",
    "to_array",
    "write_msgpack",
    "write_tensors",
]
