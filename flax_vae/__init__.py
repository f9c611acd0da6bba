"""The FLUX / Stable Diffusion family of image autoencoders in Flax.

The twin of `torch_ref`, class by class and name by name: torch `encoder.down.0.block.1.norm1.weight` is
`encoder/down_0/block_1/norm1/scale` here.  Images are `b h w c` in [-1, 1].

What there is stands in `__init__.pyi`, and is loaded when it is first asked for (PEP 562): `flax-vae --help` need not
wait for JAX.
"""

import ast
import importlib
import importlib.util
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOMES = {name.name: str(line.module) for line in _STUB.body if isinstance(line, ast.ImportFrom) for name in line.names}
globals()["__all__"] = sorted(_HOMES)  # for type checkers it stands in the stub, written out


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value  # nobody asks here a second time
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")  # `flax_vae.loading`, by whoever imported only `flax_vae`
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
