"""Model folders: `config.json` beside `model.safetensors`, which uses PyTorch's own names.

PyTorch reads the weights without conversion, Flax through the table of weights.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flax_vae.convert.architecture import Architecture, architecture_from_dict
from flax_vae.convert.errors import ConversionError, FileError
from flax_vae.convert.files import atomic_file, atomic_folder, read_object, write_json
from flax_vae.convert.formats import ArrayLike, foreign, read_metadata, read_tensors, write_tensors
from flax_vae.convert.table import to_flax
from flax_vae.convert.weights.diffusers_config import change_latent_keys, is_diffusers_config, read_diffusers_file
from flax_vae.convert.weights.embedded import check_config, write_architecture

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LAYOUT = "flux"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
FLAX_WEIGHTS = "diffusion_flax_model.msgpack"


def save_folder(
    folder: str | os.PathLike[str],
    params: Architecture,
    state_dict: Mapping[str, ArrayLike],
    *,
    force: bool = False,
) -> None:
    """Writes a model folder.

    The folder appears under its name only when it is complete, and otherwise stays as it was; see
    `flax_vae.convert.files.atomic_folder`.

    Args:
      folder: Folder to write; missing parents are created.
      params: Architecture.
      state_dict: Weights in the `flux` layout.
      force: Whether to replace an existing model folder.

    Raises:
      ConversionError: If the weights do not match the architecture.
      FileExistsError: If the folder exists and `force` is False, or if it holds anything other than a model.
    """
    to_flax(state_dict, params, LAYOUT)  # checks every tensor; the views cost nothing
    with atomic_folder(folder, (CONFIG, WEIGHTS), force=force) as fresh:
        write_json(fresh / CONFIG, params.to_dict())
        write_tensors(fresh / WEIGHTS, state_dict, metadata=header(params))


def header(params: Architecture) -> dict[str, str]:
    """Returns the metadata of a weights file."""
    # Hugging Face's readers require the first entry.
    return {"format": "pt"} | write_architecture(params)


def load_folder(path: str | os.PathLike[str], *, verify: bool = True) -> tuple[Architecture, dict[str, np.ndarray]]:
    """Reads a model folder, given the folder or the `model.safetensors` in it.

    Args:
      path: Model folder, or its `model.safetensors`.
      verify: Whether to compare the configuration with the one that was written with the weights, and the weights with
        their digest; see `flax_vae.convert.formats.read_tensors`.

    Returns:
      The architecture, and the weights in the `flux` layout.

    Raises:
      FileNotFoundError: If the folder or one of its two files is missing.
      FileError: If one of them cannot be parsed, or was changed after it was written.
      ConversionError: If the weights do not match the architecture.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"{path} does not exist; give a model folder, which holds {CONFIG} and {WEIGHTS}")
    if not folder.is_dir():
        if folder.name != WEIGHTS:
            raise FileError(f"{path} is not a model folder; give a folder that holds {CONFIG} and {WEIGHTS}", path=path)
        folder = folder.parent
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; a model folder holds {CONFIG} and {WEIGHTS}")
    params = read_config(folder / CONFIG)
    state_dict = read_tensors(folder / WEIGHTS, verify=verify)
    try:
        to_flax(state_dict, params, LAYOUT)  # checks every tensor; the views cost nothing
    except ConversionError as error:
        raise ConversionError(f"{folder}: {error}", path=folder) from None
    if verify:
        check_config(folder / CONFIG, params, folder / WEIGHTS, read_metadata(folder / WEIGHTS))
    return params, state_dict


def write_config(folder: str | os.PathLike[str], params: Architecture | None = None) -> None:
    """Changes the configuration of a model folder, or accepts a change that was made to its `config.json`.

    Rewrites the weights file with the same tensors and a new header, which takes about a second per gigabyte.  If the
    process is killed between the two files, readers refuse the folder until the call is repeated.

    Args:
      folder: Model folder, of this package or of diffusers.
      params: New architecture, which in a folder of diffusers may differ in scale, shift and statistics of latents
        only; None takes the current `config.json`.

    Raises:
      FileNotFoundError: If the folder has no configuration, or no weights file.
      FileError: If a file cannot be parsed, or the weights are damaged.
      ConversionError: If the weights do not match the architecture, or a configuration of diffusers cannot be changed
        to it.
    """
    config = Path(folder) / CONFIG
    theirs = not is_own_config(config)
    weights = Path(folder) / (DIFFUSERS_WEIGHTS if theirs else WEIGHTS)
    fields = change_latent_keys(read_object(config), params) if theirs and params is not None else None
    params = params or read_any_config(config)
    tensors, metadata = read_tensors(weights), read_metadata(weights)
    to_flax(tensors, params)  # checks every tensor; the views cost nothing
    if fields is not None or not theirs:
        with atomic_file(config, force=True) as file:
            write_json(file, params.to_dict() if fields is None else fields)
    write_tensors(weights, tensors, metadata=metadata | header(params), force=True)


def is_own_config(path: str | os.PathLike[str]) -> bool:
    """Returns whether a `config.json` does not have the form of diffusers' configurations.

    Args:
      path: Path of the file.
    """
    try:
        return not is_diffusers_config(read_object(path))
    except ValueError:  # `read_config` reports it
        return True


def read_any_config(path: str | os.PathLike[str]) -> Architecture:
    """Reads the architecture from a `config.json` of this package or of diffusers.

    Args:
      path: Path of the file.

    Returns:
      Architecture of either family.

    Raises:
      FileError: If the file is not JSON or does not describe an architecture.
      ConversionError: If it is a configuration of diffusers that our architecture cannot express.
    """
    return read_config(path) if is_own_config(path) else read_diffusers_file(path)


def read_config(path: str | os.PathLike[str]) -> Architecture:
    """Reads the architecture from a `config.json`.

    Args:
      path: Path of the file.

    Returns:
      Architecture of either family.

    Raises:
      FileError: If the file is not JSON or does not describe an architecture.
    """
    try:
        return architecture_from_dict(read_object(path))
    except (TypeError, ValueError) as error:
        raise FileError(
            foreign(path, "a configuration") or f"{path} does not describe an autoencoder: {error}",
            path=path,
        ) from error
