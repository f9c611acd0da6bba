"""Names, shapes and layouts of every weight, and the files that hold them: numpy in, numpy out.

Neither framework is needed, or loaded; each name is loaded when it is first asked for (PEP 562).
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convert.architecture import AutoEncoderParams
    from convert.discriminator import DiscriminatorParams
    from convert.discriminator_rows import discriminator_to_flax, discriminator_to_torch
    from convert.errors import ConversionError, FileError
    from convert.folder import load_folder, save_folder
    from convert.loading import load_weights
    from convert.presets import PRESETS, preset
    from convert.saving import save_weights
    from convert.table import LAYOUTS, Row, expand, to_flax, to_torch

_HOMES = {
    "AutoEncoderParams": "architecture",
    "ConversionError": "errors",
    "DiscriminatorParams": "discriminator",
    "FileError": "errors",
    "LAYOUTS": "table",
    "PRESETS": "presets",
    "Row": "table",
    "discriminator_to_flax": "discriminator",
    "discriminator_to_torch": "discriminator",
    "expand": "table",
    "load_folder": "folder",
    "load_weights": "loading",
    "preset": "presets",
    "save_folder": "folder",
    "save_weights": "saving",
    "to_flax": "table",
    "to_torch": "table",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
            return importlib.import_module(f"{__name__}.{name}")  # `convert.files`, after `import convert` alone
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
