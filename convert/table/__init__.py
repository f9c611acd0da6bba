"""The table of weights: names, shapes and axis orders of every tensor in every layout.

Also identifies the autoencoder in a state dict.  Reads no file; imports `flax_vae.convert.architecture`.  Used to
convert, load and save.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.convert.table.adam import AdamState, adam_state_from_torch, adam_state_in, adam_state_to_torch
    from flax_vae.convert.table.discriminator import PREFIX, discriminator_to_flax, discriminator_to_torch
    from flax_vae.convert.table.grafting import graft
    from flax_vae.convert.table.identification import NOT_INFERABLE, Weights, fitting_presets, identify, nearest_preset
    from flax_vae.convert.table.ops import CONV, SAME, Op
    from flax_vae.convert.table.rows import (
        LAYOUTS,
        READABLE,
        TINY_LAYOUTS,
        Row,
        expand,
        flatten,
        require_same,
        to_flax,
        to_torch,
        unflatten,
    )
    from flax_vae.convert.table.tiny_autoencoder import PAIR_LAYOUT, is_half, join_halves, split_halves
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "AdamState",
    "CONV",
    "LAYOUTS",
    "NOT_INFERABLE",
    "Op",
    "PAIR_LAYOUT",
    "PREFIX",
    "READABLE",
    "Row",
    "SAME",
    "TINY_LAYOUTS",
    "Weights",
    "adam_state_from_torch",
    "adam_state_in",
    "adam_state_to_torch",
    "discriminator_to_flax",
    "discriminator_to_torch",
    "expand",
    "fitting_presets",
    "flatten",
    "graft",
    "nearest_preset",
    "require_same",
    "to_flax",
    "to_torch",
    "identify",
    "is_half",
    "join_halves",
    "split_halves",
    "unflatten",
]
