"""Photographs, random crops of them, and batches that are made ahead of the step.

Imports `train.config` and `flax_vae.images`; used by the loop and by evaluation.
"""

from typing import TYPE_CHECKING

from convert.faces import lazy_names

if TYPE_CHECKING:
    from train.data.listing import data_listing, digest_of_listing, find_changes, how_listed
    from train.data.photographs import Photographs, held_out_image
    from train.data.prefetch import Batches
    from train.data.shipped import shipped_photographs
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
]
