"""The formats of shards by their names."""

from typing import get_args

from flax_vae.convert.errors import ArgumentError
from flax_vae.convert.files import Place, is_address
from flax_vae.convert.latents.array_record import ArrayRecordShards
from flax_vae.convert.latents.bucket import BucketShards
from flax_vae.convert.latents.index import Storage
from flax_vae.convert.latents.npz import NpzShards
from flax_vae.convert.latents.storage import SafetensorsShards, ShardStorage
from flax_vae.convert.latents.torch_files import TorchFiles

_KINDS = (SafetensorsShards, ArrayRecordShards, NpzShards, TorchFiles)


def shard_storage(storage: str, folder: Place = "") -> ShardStorage:
    """Returns the format of this name.

    Args:
      storage: Name of the format.
      folder: Folder of the data set; in a bucket, shards are written and read as objects.

    Raises:
      ArgumentError: If there is no such format.
    """
    for kind in _KINDS:
        if kind.storage == storage:
            return BucketShards(kind()) if is_address(folder) else kind()
    raise ArgumentError(
        f"storage={storage!r} must be one of {', '.join(get_args(Storage))}", field="storage", value=storage
    )
