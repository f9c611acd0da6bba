"""Opens and saves weights: files, model folders, training checkpoints, names on the Hugging Face hub.

Imports `flax_vae.convert.formats` and `flax_vae.convert.table`; used by `from_pretrained` and `save_pretrained` of
both frameworks.
"""

from typing import TYPE_CHECKING

from flax_vae.convert.faces import lazy_names

if TYPE_CHECKING:
    from flax_vae.convert.weights.diffusers_config import (
        kept_keys,
        read_diffusers_config,
        write_diffusers_config,
    )
    from flax_vae.convert.weights.folder import (
        CONFIG,
        DIFFUSERS_WEIGHTS,
        FLAX_WEIGHTS,
        WEIGHTS,
        is_own_config,
        load_folder,
        read_any_config,
        read_config,
        save_folder,
        write_config,
    )
    from flax_vae.convert.weights.hub import find_config
    from flax_vae.convert.weights.load import load_weights, resolve_architecture
    from flax_vae.convert.weights.open import WeightFile, open_weights
    from flax_vae.convert.weights.run_folder import CHECKPOINTS, EXPORT, find_export, is_run, local_weights
    from flax_vae.convert.weights.save import save_weights
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "DIFFUSERS_WEIGHTS",
    "EXPORT",
    "FLAX_WEIGHTS",
    "WEIGHTS",
    "WeightFile",
    "find_config",
    "find_export",
    "is_own_config",
    "is_run",
    "kept_keys",
    "load_folder",
    "load_weights",
    "local_weights",
    "open_weights",
    "read_any_config",
    "read_config",
    "read_diffusers_config",
    "resolve_architecture",
    "save_folder",
    "save_weights",
    "write_config",
    "write_diffusers_config",
]
