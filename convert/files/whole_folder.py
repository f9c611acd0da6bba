"""Writes folders whole or not at all, as `flax_vae.convert.files.atomic_file` does for files."""

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from flax_vae.convert.errors import ConversionError
from flax_vae.convert.files.atomic import exchange, keep_permissions, restore, unfinished
from flax_vae.convert.files.whole_file import refuse_dead_link, sync_file, sync_folder

PICKLES = (".pt", ".pth", ".ckpt", ".bin")  # what PyTorch pickled

# Suffixes of files, which a folder is not meant to have.
_FILE_SUFFIXES = {
    *(".safetensors", ".sft", *PICKLES, ".msgpack", ".json", ".npz", ".npy", ".h5", ".hdf5", ".onnx", ".gguf", ".zip"),
    *(".tar", ".gz", ".tgz", ".7z", ".pkl", ".pickle"),
}


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike[str], names: Collection[str], *, force: bool = False) -> Iterator[Path]:
    """Gives an empty folder beside `folder`; it takes the final name when the block succeeds.

    When the block fails, it is removed and `folder` is what it was before.  A folder that is replaced changes places
    with the new one, which gets its permissions, and is removed last.  What a killed process left unfinished of it is
    removed first; see `flax_vae.convert.files.atomic`.

    Args:
      folder: Path of the folder; missing folders above it are made.
      names: Names of the files of a model of this kind; a folder that holds any other file is never replaced.
      force: Whether an existing folder of such files may be replaced.

    Yields:
      Path of the empty folder.

    Raises:
      ConversionError: If the name is that of a file.
      FileExistsError: If the folder exists and `force` is not set, or if it holds anything else than such files.
      FileNotFoundError: If it is a link to nothing.
    """
    refuse_file_name(folder)
    refuse_dead_link(folder)
    target = Path(folder).resolve()  # a link keeps pointing to where it points
    restore(target)
    _refuse_to_lose(folder, target, names, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(target, folder=True) as fresh:
        try:
            remove_content(fresh)
            yield fresh
            replace_folder(fresh, target)
        except BaseException:  # an interrupt, too, leaves nothing behind
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def refuse_file_name(folder: str | os.PathLike[str]) -> None:
    """Refuses a name that says that a file is wanted, unless a folder has it already.

    Args:
      folder: Path of the folder to be written.

    Raises:
      ConversionError: naming what can be written instead.
    """
    path = Path(folder)
    suffix = path.suffix.lower()
    if path.is_dir() or suffix not in _FILE_SUFFIXES:
        return
    if suffix in PICKLES:
        what = f"{suffix} files are PyTorch's pickles, which are read and never written"
    elif suffix in (".safetensors", ".sft"):
        what = f"{suffix} is the name of one file, and a model folder is asked for"
    else:
        what = f"files of {suffix} are not written"
    raise ConversionError(
        f"{folder}: {what}; give {path.with_suffix('')} for a folder"
        + ("" if suffix in (".safetensors", ".sft") else f", or {path.with_suffix('.safetensors')} for a file")
    )


def replace_folder(fresh: Path, target: Path) -> None:
    """Gives a folder its final name; one that has the name already is removed when the new one is in its place.

    Folder and files keep the permissions of those that they replace.

    Args:
      fresh: New folder, beside the other.
      target: Path that it gets.
    """
    if target.exists():
        for new in (fresh, *fresh.iterdir()):
            old = target if new is fresh else target / new.name
            if old.exists():
                keep_permissions(old, new)
    _swap(fresh, target)
    sync_folder(target.parent)


def remove_content(folder: Path) -> None:
    """Empties a folder.

    Args:
      folder: Folder, which stays.
    """
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes JSON that people can read, and waits until it is on the disk.

    Args:
      path: Path of the file, which is replaced.
      fields: JSON object.
    """
    path.write_text(json.dumps(fields, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    sync_file(path)


def _refuse_to_lose(folder: str | os.PathLike[str], target: Path, names: Collection[str], force: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"{folder} is a file; a model folder needs a name of its own")
    present = sorted(entry.name for entry in target.iterdir())
    others = [name for name in present if name not in names]
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
        exchange(fresh, target)
        shutil.rmtree(fresh)  # what was replaced
