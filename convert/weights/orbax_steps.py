"""Reads the parameters of training checkpoints, `checkpoints/STEP`, as numpy arrays without JAX.

Orbax restores numpy arrays by name too (`PyTreeCheckpointer.restore` with `restore_type=np.ndarray`), but it imports
JAX and starts its backend, which on a TPU belongs to the run that is training.  So the arrays, stored as zarr in one
OCDBT database, are read with tensorstore, which comes with orbax: without a backend, in a third of the time, and one by
one.  Neither library detects most flipped bits; the manifest of the step does (`flax_vae.convert.files.manifest`).
"""

import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - registers bfloat16 with numpy
import numpy as np

from flax_vae.convert.architecture import Architecture, architecture_from_dict
from flax_vae.convert.errors import FileError
from flax_vae.convert.files import UNVERIFIED, find_damage, is_number, read_object
from flax_vae.convert.formats import ArrayLike, Deferred
from flax_vae.convert.weights.averages import overlay

MARK = "_CHECKPOINT_METADATA"  # file in the folder of a step
_TREE = "_METADATA"  # file in the folder of the state: names of its arrays
_UNFINISHED = ".orbax-checkpoint-tmp"


def list_step_folders(folder: Path) -> list[Path]:
    """Returns the step folders in a folder of checkpoints, the earliest first."""
    steps = [entry for entry in folder.iterdir() if is_number(entry.name) and (entry / MARK).is_file()]
    return sorted(steps, key=lambda step: int(step.name))


class StoredStep(NamedTuple):
    """Weights of one step of a training run.

    Attributes:
      params: Architecture that was trained.
      tensors: Arrays by Flax path, `{"encoder/conv_in/kernel": ...}`, read from disk when used.
      averaged: Whether the tensors are the moving average; None if the run keeps none.
    """

    params: Architecture
    tensors: dict[str, ArrayLike]
    averaged: bool | None


def read_weights(path: str | os.PathLike[str], *, raw_weights: bool = False, verify: bool = True) -> StoredStep:
    """Reads the weights of one step of a training run, as the run would export them.

    Args:
      path: Folder of the step.
      raw_weights: Whether to read the raw weights if the run keeps a moving average.
      verify: Whether to compare all files with the manifest; see `read_step`.

    Raises:
      FileNotFoundError: As for `read_step`.
      FileError: As for `read_step`.
    """
    params, tensors = read_step(path, verify=verify)
    if "ema" not in list_trees(path):
        return StoredStep(params, {**tensors}, None)
    if raw_weights:
        return StoredStep(params, {**tensors}, False)
    _, average = read_step(path, "ema", verify=False)
    return StoredStep(params, overlay(path, tensors, average), True)


def list_trees(path: str | os.PathLike[str]) -> list[str]:
    """Returns the names of the trees in a step's state that hold arrays: `params`, `opt_state` and `ema`, for example.

    Raises:
      FileError: If the file that lists them is missing or damaged.
    """
    step = Path(path)
    return sorted({keys[0] for keys in _leaves(step, _object(step / "state" / _TREE))})


def read_step(
    path: str | os.PathLike[str], tree: str = "params", *, verify: bool = True
) -> tuple[Architecture, dict[str, Deferred]]:
    """Reads one tree of the state of a training step.

    Args:
      path: Folder of the step.
      tree: Name of the tree: the parameters, or another tree of the same structure.
      verify: Whether to first compare all files with the manifest of the step, which reads them at 1 to 2 GB/s.

    Returns:
      The architecture that was trained, and arrays by Flax path, `{"encoder/conv_in/kernel": ...}`, each read from disk
      when used.

    Raises:
      FileNotFoundError: If the folder does not exist.
      FileError: If the folder is not a checkpoint of a training run or is damaged, or if the state has no such tree.
    """
    step = Path(path)
    if not step.is_dir():
        raise FileNotFoundError(f"{path} does not exist; give the folder of one step, such as checkpoints/1000")
    if step.name.endswith(_UNFINISHED) or not (step / MARK).is_file():
        raise FileError(f"{path} is not a complete checkpoint of a training run: it holds no {MARK}", path=path)
    import tensorstore  # 0.1 s, and the command line converts other files without it

    if verify:
        _verify(step)
    params = _architecture(step)
    metadata = _object(step / "state" / _TREE)
    leaves = _leaves(step, metadata)
    chosen = {"/".join(keys[1:]): keys for keys in leaves if keys[0] == tree and len(keys) > 1}
    if not chosen:
        raise FileError(
            f"{path} has no {tree!r}; expected one of {', '.join(sorted({keys[0] for keys in leaves}))}", path=path
        )
    files = {"driver": "file", "path": f"{(step / 'state').resolve().as_posix()}/"}
    database = {"driver": "ocdbt", "base": files}
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    arrays = {}
    for name, keys in sorted(chosen.items()):
        # Otherwise a missing chunk would be read as zeros.
        spec = {
            "driver": driver,
            "kvstore": database | {"path": ".".join(keys) + "/"},
            "fill_missing_data_reads": False,
        }
        try:
            stored = tensorstore.open(spec, open=True, read=True).result()
        except (ValueError, OSError) as error:
            raise _damaged(step, name, error) from error
        arrays[name] = Deferred(tuple(stored.shape), stored.dtype.numpy_dtype, partial(_read, step, name, stored))
    return params, arrays


def _verify(step: Path) -> None:
    damage = find_damage(step)
    if damage == UNVERIFIED:
        raise FileError(
            f"{step} cannot be verified: {damage}; take another step, or accept this one as it is with "
            "flax_vae.train.run.manifest.write_manifest(FOLDER)",
            path=step,
        )
    if damage is not None:
        raise FileError(f"{step} is damaged: {damage}; take another step", path=step)


def _read(step: Path, name: str, stored: Any) -> np.ndarray:
    try:
        return stored.read().result()
    except (ValueError, OSError) as error:
        raise _damaged(step, name, error) from error


def _damaged(step: Path, name: str, error: Exception) -> FileError:
    reason = next(iter(str(error).splitlines()), "")
    return FileError(f"{step} is damaged: {name} cannot be read ({reason}); take another step")


def _architecture(step: Path) -> Architecture:
    path = step / "config" / "metadata"
    fields = _object(path)
    try:
        return architecture_from_dict(fields["model"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} does not describe a training run: {error}", path=path) from error


def _leaves(step: Path, metadata: dict[str, Any]) -> list[list[str]]:
    try:
        entries = metadata["tree_metadata"].values()
        stored = [entry for entry in entries if not entry["value_metadata"]["skip_deserialize"]]  # None has no array
        return [[str(part["key"]) for part in entry["key_metadata"]] for entry in stored]
    except (AttributeError, KeyError, TypeError) as error:
        raise FileError(f"{step / 'state' / _TREE} does not describe a tree of arrays: {error!r}") from error


def _object(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError as error:
        raise FileError(f"{path} is missing; expected a complete checkpoint of a training run", path=path) from error
    except ValueError as error:
        raise FileError(f"{path} cannot be parsed: {error}", path=path) from error
