"""Folders that are whole or not there at all, as `convert.files.new_file` does it for files."""

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from convert.files import beside, sync_file, sync_folder


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike[str], names: Collection[str], *, force: bool = False) -> Iterator[Path]:
    """Gives an empty folder beside `folder`; it takes the final name when the block succeeds.

    When the block fails, it is removed and `folder` is what it was before.  A folder that is replaced is moved aside
    first and removed last.

    Args:
      folder: the folder; missing folders above it are made.
      names: of the files that a model of this kind consists of; a folder that holds any other is never replaced.
      force: whether an existing folder of such files may be replaced.

    Raises:
      FileExistsError: if the folder exists and `force` is not set, or if it holds anything else than such files.
    """
    target = Path(folder).resolve()  # a link keeps pointing to where it points
    _refuse_to_lose(folder, target, names, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = beside(target, "partial")
    try:
        fresh.mkdir()
        yield fresh
        _swap(fresh, target)
    except BaseException:  # an interrupt, too, leaves nothing behind
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Writes JSON that people can read, and waits until it is on the disk."""
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
        old = beside(target, "old")
        target.rename(old)
        try:
            fresh.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old)
    sync_folder(target.parent)
