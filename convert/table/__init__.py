"""Which tensor is which: the table of weights in every layout, and the autoencoder in a state dict, identified.

Touches no file; imports `convert.architecture`.  Used to convert, load and save.
"""

from typing import TYPE_CHECKING

from convert.faces import lazy_names

if TYPE_CHECKING:
    from convert.table.adam import AdamState, adam_state_from_torch, adam_state_to_torch
    from convert.table.discriminator import discriminator_to_flax, discriminator_to_torch
    from convert.table.grafting import graft
    from convert.table.identify import NOT_INFERABLE, Weights, fitting_presets, nearest_preset, understand
    from convert.table.ops import CONV, SAME, Op
    from convert.table.rows import LAYOUTS, READABLE, Row, expand, flatten, to_flax, to_torch, unflatten
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "AdamState",
    "CONV",
    "LAYOUTS",
    "NOT_INFERABLE",
    "Op",
    "READABLE",
    "Row",
    "SAME",
    "Weights",
    "adam_state_from_torch",
    "adam_state_to_torch",
    "discriminator_to_flax",
    "discriminator_to_torch",
    "expand",
    "fitting_presets",
    "flatten",
    "graft",
    "nearest_preset",
    "to_flax",
    "to_torch",
    "understand",
    "unflatten",
]
