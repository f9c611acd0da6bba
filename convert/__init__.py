"""Names, shapes and layouts of every weight, and the files that hold them: numpy in, numpy out.

Neither framework is needed, or loaded.
"""

from convert.architecture import AutoEncoderParams
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
    "FileError",
    "Row",
    "expand",
    "load_folder",
    "load_weights",
    "preset",
    "save_folder",
    "save_weights",
    "to_flax",
    "to_torch",
]
