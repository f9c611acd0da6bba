"""Encodes images to latent data sets and decodes them again; resumable, shard by shard.

Imports `flax_vae.inference` and `flax_vae.convert.latents`; used by `flax-vae encode` and `flax-vae decode`.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.folders.batches import BatchLimits
    from flax_vae.folders.decode import decode_folder
    from flax_vae.folders.encode import EncodeReport, encode_folder, encoding_of
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["BatchLimits", "EncodeReport", "decode_folder", "encode_folder", "encoding_of"]
