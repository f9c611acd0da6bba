"""Names, shapes and layouts of every weight, and the files that hold them: numpy in, numpy out.

Neither framework is needed, or loaded; each name is loaded when it is first asked for (PEP 562).
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convert.architecture import PRESETS, AutoEncoderParams, DiscriminatorParams, preset
    from convert.errors import ConversionError, FileError
    from convert.table import LAYOUTS, Row, discriminator_to_flax, discriminator_to_torch, expand, to_flax, to_torch
    from convert.weights import load_folder, load_weights, save_folder, save_weights

_HOMES = {
    **dict.fromkeys(["AutoEncoderParams", "DiscriminatorParams", "PRESETS", "preset"], "architecture"),
    **dict.fromkeys(["ConversionError", "FileError"], "errors"),
    **dict.fromkeys(
        ["LAYOUTS", "Row", "discriminator_to_flax", "discriminator_to_torch", "expand", "to_flax", "to_torch"], "table"
    ),
    **dict.fromkeys(["load_folder", "load_weights", "save_folder", "save_weights"], "weights"),
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
            return importlib.import_module(
                f"{__name__}.{name}"
            )  # `convert.formats.safetensors`, after `import convert` alone
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
