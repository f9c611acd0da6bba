"""Names, shapes and layouts of every weight, and the files that hold them: numpy in, numpy out.

Neither framework is needed, or loaded.
"""

from convert.architecture import AutoEncoderParams
from convert.discriminator import DiscriminatorParams, discriminator_to_flax, discriminator_to_torch
from convert.errors import ConversionError, FileError
from convert.folder import load_folder, save_folder
from convert.loading import load_weights
from convert.presets import PRESETS, preset
from convert.saving import save_weights
from convert.table import LAYOUTS, Row, expand, to_flax, to_torch

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
