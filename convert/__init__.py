"""Names, shapes and layouts of every weight, and the files that hold them: numpy in, numpy out.

Neither framework is needed, or loaded; each name is loaded when it is first asked for (PEP 562).
"""

from typing import TYPE_CHECKING

from convert.faces import lazy_names

if TYPE_CHECKING:
    from convert.architecture import PRESETS, AutoEncoderParams, DiscriminatorParams, preset
    from convert.errors import ConversionError, FileError
    from convert.table import LAYOUTS, Row, discriminator_to_flax, discriminator_to_torch, expand, to_flax, to_torch
    from convert.weights import load_folder, load_weights, save_folder, save_weights
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "LAYOUTS",
    "PRESETS",
    "AutoEncoderParams",
    "ConversionError",
    "DiscriminatorParams",
    "FileError",
    "Row",
    "discriminator_to_flax",
    "discriminator_to_torch",
    "expand",
    "load_folder",
    "load_weights",
    "preset",
    "save_folder",
    "save_weights",
    "to_flax",
    "to_torch",
]
