"""Loads and saves parameters under diffusers' Flax names."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from flax_vae.compat.names import LAYOUT
from flax_vae.convert.architecture import AutoEncoderParams, check_weights
from flax_vae.convert.errors import ArgumentError, suggest
from flax_vae.convert.files import read_object
from flax_vae.convert.table import Weights, flatten, unflatten
from flax_vae.convert.weights import (
    FLAX_WEIGHTS,
    find_config,
    is_own_config,
    load_weights,
    read_any_config,
    save_weights,
    write_diffusers_config,
)
from flax_vae.loading import to_jax

# Options of diffusers' `from_pretrained` that change no number.  Most concern downloads, where the hub's own client and
# its variables decide here.
_UNUSED = (
    "_do_init", "cache_dir", "force_download", "local_files_only", "low_cpu_mem_usage", "mirror", "proxies",
    "resume_download", "token", "use_auth_token", "use_safetensors",
)  # fmt: skip


def check_options(options: Iterable[str]) -> None:
    """Checks that options which are not used change no number.

    Raises:
      ArgumentError: If one is unknown.
    """
    for name in options:
        if name not in _UNUSED:
            raise ArgumentError(
                f"from_pretrained takes no {name!r}; {suggest(name, _UNUSED, listed=False) or 'leave it out'} "
                "(to change a field of the module: vae.clone(field=value))",
                field=name,
            )


def load(
    path: str | os.PathLike[str], subfolder: str | None, revision: str | None, variant: str | None, from_pt: bool
) -> Weights:
    """Returns the weights of a local folder or file, or of a model on the hub; for arguments see `from_pretrained`.

    Raises:
      FileNotFoundError: If there is no such model.
      FileError: If a file is damaged.
      ConversionError: If the weights do not match the configuration.
    """
    if not Path(path).exists():
        return load_weights(path, variant=variant, revision=revision, subfolder=subfolder)
    place = Path(path, subfolder or "")
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist; {path} has no subfolder {subfolder!r}")
    preferred = place / FLAX_WEIGHTS
    if not from_pt and variant is None and preferred.is_file():
        place = preferred
    return load_weights(place, variant=variant)


def load_config(path: str | os.PathLike[str], subfolder: str | None, revision: str | None) -> dict[str, Any]:
    """Returns the configuration of a folder or of a model on the hub, in diffusers' keys; see `from_pretrained`.

    Raises:
      FileNotFoundError: If there is none.
      FileError: If it is damaged.
      ConversionError: If this package cannot express it.
    """
    found = find_config(path, None if Path(path).exists() else revision, subfolder)
    architecture = read_any_config(found)
    return write_diffusers_config(architecture) if is_own_config(found) else read_object(found)


def to_params(weights: Weights) -> dict[str, Any]:
    """Returns the parameters of weights, as arrays of JAX.

    Raises:
      ConversionError: If the layout has no name for a part of the architecture.
      ArgumentError: If models cannot compute in a dtype of the weights, or JAX cannot hold it.
    """
    check_weights(weights.tensors.values(), "a file in another dtype")
    return unflatten({name: to_jax(array, "a file in another dtype") for name, array in weights.to(LAYOUT).items()})


def save(
    folder: str | os.PathLike[str],
    params: Mapping[str, Any],
    architecture: AutoEncoderParams,
    kept: Mapping[str, Any],
    layout: str,
) -> None:
    """Writes parameters in a layout that has folders; replaces a model of the same layout.

    Args:
      folder: Folder to write.
      params: Parameters under diffusers' names.
      architecture: Architecture of the parameters.
      kept: Entries of the configuration that the architecture does not hold.
      layout: `"diffusers-flax"`, `"diffusers"` or `"flux"`.

    Raises:
      FileExistsError: If the folder holds other files.
      ConversionError: If the parameters do not match the architecture, or the layout cannot express it.
    """
    weights = Weights(flatten(jax.device_get(params)), LAYOUT, architecture, kept=kept)
    save_weights(folder, weights, layout, force=True)
