"""Reads photographs, cuts random crops of them, and prepares batches ahead of the training step.

Imports `flax_vae.train.config` and `flax_vae.images`; used by the loop and by evaluation.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.train.data.listing import data_listing, digest_of_listing, find_changes, how_listed
    from flax_vae.train.data.photographs import Photographs, held_out_image, validation_images
    from flax_vae.train.data.prefetch import Batches
    from flax_vae.train.data.shipped import shipped_photographs
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Batches",
    "Photographs",
    "data_listing",
    "digest_of_listing",
    "find_changes",
    "held_out_image",
    "how_listed",
    "shipped_photographs",
    "validation_images",
]
