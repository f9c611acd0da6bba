"""Finds the exported model in the directory of a training run, and copies weights from buckets to be opened here."""

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flax_vae.convert.errors import FileError, FlaxVaeError
from flax_vae.convert.files import (
    MANIFEST,
    Place,
    address_below,
    address_of,
    exists_at,
    fetch_folder,
    is_number,
    list_at,
    open_at,
    read_at,
    read_object,
    write_at,
)
from flax_vae.convert.formats import is_index
from flax_vae.convert.weights.file_names import pair_of
from flax_vae.convert.weights.folder import CONFIG, WEIGHTS
from flax_vae.convert.weights.orbax_steps import MARK

EXPORT, CHECKPOINTS, METRICS = "export", "checkpoints", "metrics.jsonl"


def is_run(folder: Path) -> bool:
    """Returns whether a folder is the directory of a training run and not itself a model.

    Args:
      folder: Folder on disk.
    """
    if (folder / WEIGHTS).exists():
        return False
    return (folder / METRICS).is_file() or _is_model(folder / EXPORT) or bool(_steps(folder))


def find_export(run: Path) -> Path:
    """Returns the model folder that a run exported.

    Args:
      run: Run directory.

    Raises:
      FileError: If the run has not ended, or was continued after the export; the message lists alternatives.
    """
    export, steps = run / EXPORT, _steps(run)
    newest = run / CHECKPOINTS / str(steps[-1]) if steps else None
    if not _is_model(export):
        advice = f", or name a checkpoint: {newest}" if newest else ""
        raise FileError(f"{run} has no {EXPORT}/ yet; let the run end{advice}")
    asked = _asked_steps(run)
    if newest is not None and asked is not None and steps[-1] < asked:
        raise FileError(
            f"{run} has done {steps[-1]} of {asked} steps, and {export} was written before it was continued; let the "
            f"run end, or name one of them: {export} or {newest}"
        )
    return export


def _steps(run: Path) -> list[int]:
    """Returns the numbers of the run's checkpoints, complete or not."""
    folder = run / CHECKPOINTS
    return sorted(int(entry.name) for entry in folder.iterdir() if is_number(entry.name)) if folder.is_dir() else []


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _asked_steps(run: Path) -> int | None:
    """Returns the number of steps of the whole run, or None if its configuration does not give it."""
    try:
        steps = read_object(run / CONFIG).get("steps")
    except (OSError, ValueError):  # reported when the run is continued
        return None
    return steps if isinstance(steps, int) else None


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="flax-vae-")  # removed when the process ends


@contextlib.contextmanager
def local_weights(place: Place) -> Iterator[Path]:
    """Gives the path of a copy of weights in a bucket; errors in the block name the address instead of the copy.

    Of a run, its export is copied, and only the names of its checkpoints; of a folder, the files in it and none below;
    of a file, those that belong to it too.

    Args:
      place: Address of a file, of a model folder, of a checkpoint, or of a run directory.

    Yields:
      Path of the copy.

    Raises:
      FileNotFoundError: If there is nothing at the address.
      AddressError: If it cannot be reached.
    """
    address = address_of(place)
    target = Path(tempfile.mkdtemp(dir=_scratch().name)) / address.rpartition("/")[2]
    entries = {entry.name: entry for entry in list_at(address)}
    if not entries:
        if not exists_at(address):
            raise FileNotFoundError(f"{address} does not exist")
        _copy_file(address, target)
    elif MARK in entries:
        fetch_folder(address, target)
    elif WEIGHTS not in entries and ({METRICS, CHECKPOINTS} & entries.keys()):
        _copy_run(address, target)
    else:
        _copy_files(address, target, [name for name, entry in entries.items() if not entry.folder])
        steps = [name for name, entry in entries.items() if entry.folder and is_number(name)]
        steps = [step for step in steps if exists_at(address_below(address, step, MANIFEST))]
        for step in steps:  # of several, the error lists the names
            if len(steps) == 1:
                fetch_folder(address_below(address, step), target / step)
            else:
                write_at(target / step / MARK, b"")
    try:
        yield target
    except (FlaxVaeError, FileNotFoundError) as error:
        raise type(error)(str(error).replace(str(target), address)) from error


def _copy_run(address: str, target: Path) -> None:
    for entry in list_at(address_below(address, CHECKPOINTS)):
        if is_number(entry.name) and exists_at(address_below(address, CHECKPOINTS, entry.name, MANIFEST)):
            (target / CHECKPOINTS / entry.name).mkdir(parents=True)
    for name in (CONFIG, METRICS):
        with contextlib.suppress(FileNotFoundError):
            write_at(target / name, read_at(address_below(address, name)))
    fetch_folder(address_below(address, EXPORT), target / EXPORT)


def _copy_file(address: str, target: Path) -> None:
    folder, _, name = address.rpartition("/")
    names = {name, *(pair_of(name) or ())}
    beside = [entry.name for entry in list_at(folder) if not entry.folder]
    if is_index(name):
        names |= {other for other in beside if other.startswith(name.partition(".")[0])}
    _copy_files(folder, target.parent, [other for other in beside if other in {*names, CONFIG}])


def _copy_files(address: str, target: Path, names: list[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        with open_at(address_below(address, name)) as source, (target / name).open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 22)
