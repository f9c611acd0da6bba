"""The latent data set: its index, its shards, and statistics of its channels.

NumPy only; imports `flax_vae.convert.formats`.  Written by `flax_vae.folders`, read for training on latents.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.convert.latents.array_record import read_record
    from flax_vae.convert.latents.dataset import LatentDataset
    from flax_vae.convert.latents.formats import shard_storage
    from flax_vae.convert.latents.index import (
        INDEX,
        PLAN,
        SKIPPED,
        STATISTICS,
        Encoding,
        LatentIndex,
        Storage,
        dump_index,
        images_file,
        read_latent_index,
        shard_file,
    )
    from flax_vae.convert.latents.shard import (
        NO_LABEL,
        LatentEntry,
        ShardContent,
        ShardNotes,
        Skip,
        read_notes,
        read_sources,
        write_shard,
    )
    from flax_vae.convert.latents.statistics import ChannelStats, LatentStatistics
    from flax_vae.convert.latents.storage import ShardStorage
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Encoding",
    "INDEX",
    "LatentDataset",
    "LatentEntry",
    "LatentIndex",
    "ChannelStats",
    "LatentStatistics",
    "NO_LABEL",
    "PLAN",
    "SKIPPED",
    "STATISTICS",
    "ShardContent",
    "ShardNotes",
    "ShardStorage",
    "Skip",
    "Storage",
    "dump_index",
    "images_file",
    "read_latent_index",
    "read_notes",
    "read_record",
    "read_sources",
    "shard_file",
    "shard_storage",
    "write_shard",
]
