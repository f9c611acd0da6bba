"""Names, shapes and layouts of every weight, and the files that hold them: numpy in, numpy out.

Neither framework is needed, or loaded.
"""

from convert.architecture import AutoEncoderParams
from convert.errors import ConversionError
from convert.presets import PRESETS, preset
from convert.table import LAYOUTS, Row, expand, to_flax, to_torch

__all__ = [
    "LAYOUTS",
    "PRESETS",
    "AutoEncoderParams",
    "ConversionError",
    "Row",
    "expand",
    "preset",
    "to_flax",
    "to_torch",
]
