"""Model folders: `config.json` beside `model.safetensors`, which is in the layout of PyTorch's own names.

PyTorch reads the weights without converting anything, Flax reads them through the table.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from convert.architecture import AutoEncoderParams
from convert.errors import ConversionError, FileError
from convert.files import beside, read_tensors, sync_file, sync_folder, write_tensors
from convert.strict_json import loads_object
from convert.table import to_flax

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LAYOUT = "flux"


def save_folder(
    folder: str | os.PathLike[str],
    params: AutoEncoderParams,
    state_dict: Mapping[str, np.ndarray],
    *,
    force: bool = False,
) -> None:
    """Writes a model folder.

    It is written under a temporary name beside `folder` and then renamed, so that under its own name the folder is
    either complete or as it was before.  A folder that is replaced is moved aside first and removed last.

    Args:
      folder: the folder; missing folders above it are made.
      params: the architecture.
      state_dict: its weights in the `flux` layout.
      force: whether an existing model folder may be replaced.

    Raises:
      ConversionError: if the weights are not those of the architecture.
      FileExistsError: if the folder exists and `force` is not set, or if it holds anything else than a model.
    """
    target = Path(folder).resolve()  # a link keeps pointing to where it points
    _refuse_to_lose(folder, target, force)
    to_flax(state_dict, params, LAYOUT)  # for its strictness; the views cost nothing
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = beside(target, "partial")
    try:
        fresh.mkdir()
        (fresh / CONFIG).write_text(json.dumps(params.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        sync_file(fresh / CONFIG)
        # Hugging Face's readers ask for this entry before they trust a file.
        write_tensors(fresh / WEIGHTS, state_dict, metadata={"format": "pt"})
        _swap(fresh, target)
    except BaseException:  # an interrupt, too, leaves nothing behind
        shutil.rmtree(fresh, ignore_errors=True)
        raise


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
        return AutoEncoderParams.from_dict(loads_object(Path(path).read_bytes()))
    except (TypeError, ValueError) as error:
        raise FileError(f"{path} does not describe an autoencoder: {error}") from error


def _refuse_to_lose(folder: str | os.PathLike[str], target: Path, force: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"{folder} is a file; a model folder needs a name of its own")
    present = sorted(entry.name for entry in target.iterdir())
    others = [name for name in present if name not in (CONFIG, WEIGHTS)]
    if others:
        raise FileExistsError(
            f"{folder} holds more than a model ({', '.join(others)}) and is never replaced; choose another name"
        )
    if present and not force:
        raise FileExistsError(f"{folder} exists already; replace it with force=True (--force), or choose another name")


def _swap(fresh: Path, target: Path) -> None:
    if not target.exists():
        fresh.rename(target)
    else:
        old = beside(target, "old")
        target.rename(old)
        try:
            fresh.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old)
    sync_folder(target.parent)
