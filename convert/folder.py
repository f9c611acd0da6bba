"""Model folders: `config.json` beside `model.safetensors`, which is in the layout of PyTorch's own names.

PyTorch reads the weights without converting anything, Flax reads them through the table.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.architecture import AutoEncoderParams
from convert.content import foreign
from convert.errors import ConversionError, FileError
from convert.files import ArrayLike, read_tensors, write_tensors
from convert.new_folder import new_folder, write_json
from convert.strict_json import read_object
from convert.table import to_flax

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LAYOUT = "flux"


def save_folder(
    folder: str | os.PathLike[str],
    params: AutoEncoderParams,
    state_dict: Mapping[str, ArrayLike],
    *,
    force: bool = False,
) -> None:
    """Writes a model folder.

    Under its own name the folder is either complete or as it was before; see `convert.new_folder`.

    Args:
      folder: the folder; missing folders above it are made.
      params: the architecture.
      state_dict: its weights in the `flux` layout.
      force: whether an existing model folder may be replaced.

    Raises:
      ConversionError: if the weights are not those of the architecture.
      FileExistsError: if the folder exists and `force` is not set, or if it holds anything else than a model.
    """
    to_flax(state_dict, params, LAYOUT)  # for its strictness; the views cost nothing
    with new_folder(folder, (CONFIG, WEIGHTS), force=force) as fresh:
        write_json(fresh / CONFIG, params.to_dict())
        # Hugging Face's readers ask for this entry before they trust a file.
        write_tensors(fresh / WEIGHTS, state_dict, metadata={"format": "pt"})


def load_folder(
    path: str | os.PathLike[str], *, verify: bool = True
) -> tuple[AutoEncoderParams, dict[str, np.ndarray]]:
    """Reads a model folder, given the folder or the `model.safetensors` in it.

    Args:
      path: either of the two.
      verify: see `convert.files.read_tensors`.

    Returns:
      The architecture, and its weights in the `flux` layout.

    Raises:
      FileNotFoundError: if the folder or one of its two files is missing.
      FileError: if one of them cannot be understood.
      ConversionError: if the weights are not those of the architecture.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"{path} does not exist; give a model folder, which holds {CONFIG} and {WEIGHTS}")
    if not folder.is_dir():
        if folder.name != WEIGHTS:
            raise FileError(f"{path} is not a model folder; give a folder that holds {CONFIG} and {WEIGHTS}")
        folder = folder.parent
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}; a model folder holds {CONFIG} and {WEIGHTS}")
    params = read_config(folder / CONFIG)
    state_dict = read_tensors(folder / WEIGHTS, verify=verify)
    try:
        to_flax(state_dict, params, LAYOUT)  # for its strictness; the views cost nothing
    except ConversionError as error:
        raise ConversionError(f"{folder}: {error}") from None
    return params, state_dict


def read_config(path: str | os.PathLike[str]) -> AutoEncoderParams:
    """Reads the architecture from a `config.json`.

    Raises:
      FileError: if the file is not JSON or does not describe an architecture.
    """
    try:
        return AutoEncoderParams.from_dict(read_object(path))
    except (TypeError, ValueError) as error:
        raise FileError(
            foreign(path, "a configuration") or f"{path} does not describe an autoencoder: {error}"
        ) from error
