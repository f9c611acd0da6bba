"""A folder that is filled over time: what it is to become stands in it first, and nothing else is ever mixed in."""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flax_vae.convert.console import printable
from flax_vae.convert.errors import shorten
from flax_vae.convert.files import (
    atomic_file,
    beside,
    open_locked,
    partial_of,
    read_object,
    release,
    replace_folder,
    restore,
)
from flax_vae.errors import UserError


def plan_sha256(plan: Mapping[str, Any]) -> str:
    """Of what a plan says, however it is laid out."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def begin(folder: Path, file: str, plan: Mapping[str, Any], remedy: str) -> None:
    """Writes the plan into the folder, or compares it with that of an earlier start.

    Args:
      folder: Folder that is to be filled.
      file: Name of the plan's file in the folder.
      plan: JSON-able values.
      remedy: Advice if the folder was begun otherwise.

    Raises:
      UserError: If the folder holds something else, or was begun with another plan, naming the differences.
    """
    if read_plan(folder, file, remedy) is None:
        require_empty(folder, file)
        write_plan(folder, file, plan)
    require_same_plan(folder, read_plan(folder, file, remedy) or {}, plan, remedy)


def read_plan(folder: Path, file: str, remedy: str) -> dict[str, Any] | None:
    """Returns the plan of an earlier start; None if there was none.

    Raises:
      UserError: If its file is damaged.
    """
    try:
        return read_object(folder / file, 1 << 28)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{printable(folder / file)} is damaged ({error}); {remedy}", path=folder / file) from error


def write_plan(folder: Path, file: str, plan: Mapping[str, Any]) -> None:
    """Writes a plan, or replaces that of an earlier start."""
    with atomic_file(folder / file, force=True) as temporary:
        temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")


def require_empty(folder: Path, *files: str) -> None:
    """Checks that a folder holds nothing but these files and what a killed start left unfinished.

    Raises:
      UserError: If it holds anything else.
    """
    others = [entry.name for entry in folder.iterdir() if entry.name not in files and not partial_of(entry.name)]
    if others:
        raise UserError(
            f"{printable(folder)} holds something else ({some(sorted(map(printable, others)))}); choose an empty or a "
            "new folder",
            path=folder,
        )


def require_same_plan(folder: Path, earlier: Mapping[str, Any], plan: Mapping[str, Any], remedy: str) -> None:
    """Compares a plan with that of an earlier start.

    Raises:
      UserError: If they differ, naming the differences.
    """
    different = list(_differences(earlier, json.loads(json.dumps(plan))))
    if different:
        raise UserError(f"{printable(folder)} was begun otherwise: {some(different)}; {remedy}", path=folder)


def require_ours(folder: Path, ours: re.Pattern[str]) -> bool:
    """Checks that a folder holds nothing but files with these names, and what a killed start left unfinished.

    Args:
      folder: Folder that is to be replaced.
      ours: Names of all files that may be in it.

    Returns:
      Whether there is anything in it.

    Raises:
      UserError: If the folder holds anything else.
    """
    present = sorted(entry.name for entry in folder.iterdir())
    others = [name for name in present if not ours.fullmatch(name) and not partial_of(name)]
    if others:
        raise UserError(
            f"{printable(folder)} holds something else ({some([*map(printable, others)])}) and is never replaced; "
            "choose another folder",
            path=folder,
        )
    return bool(present)


@contextlib.contextmanager
def replaced(folder: Path, ours: re.Pattern[str]) -> Iterator[Path]:
    """Gives the folder to fill in place of one that may hold an earlier result; they change places when the block ends.

    Until then the earlier result can be read.  When the block fails or the process is killed, what was written stays
    beside the folder, and is given again at the next start.

    Args:
      folder: The folder, held by the caller.
      ours: Names of all files that may be in it.

    Raises:
      UserError: If the folder holds anything else, or is a mount point.
    """
    target, fresh = _places(folder)
    if not require_ours(target, ours) and not fresh.exists():
        yield folder
        return
    if target.is_mount():
        raise UserError(
            f"{printable(folder)} is a mount point, which nothing can replace; give a folder in it", path=folder
        )
    with held(fresh):
        yield fresh
        replace_folder(fresh, target)


@contextlib.contextmanager
def continued(folder: Path) -> Iterator[Path]:
    """Gives the folder itself, and removes what `replaced` left beside it if it was killed: it is not gone on with.

    Args:
      folder: The folder, held by the caller.
    """
    _, fresh = _places(folder)
    yield folder
    if fresh.exists():
        with contextlib.suppress(UserError), held(fresh):  # another of several processes may be about it
            shutil.rmtree(fresh, ignore_errors=True)


def _places(folder: Path) -> tuple[Path, Path]:
    target = folder.resolve()  # a link keeps pointing to where it points
    return target, beside(target, "forced")


def clean(folder: Path, ours: re.Pattern[str]) -> None:
    """Removes what a start that was killed has left unfinished, of files with these names, also in sub-folders."""
    for path in folder.rglob(".*.partial"):
        if ours.fullmatch(partial_of(path.name) or ""):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def held(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Keeps a second command out of a folder, which is made if it is missing.

    The kernel holds the lock, and takes it back however the process ends.  Where a file system has none, nothing but
    care keeps others out.

    Args:
      folder: Folder that is being filled.
      shared: Whether other processes that share it too may work in it.

    Raises:
      UserError: If another process works there, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another name for the folder", path=folder)
    restore(folder.resolve())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = open_locked(folder, folder=True, shared=shared)
    except BlockingIOError:
        raise UserError(f"{folder} is being written by another process; wait for its end", path=folder) from None
    try:
        yield
    finally:
        release(descriptor)


def _differences(earlier: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in [*earlier, *(key for key in now if key not in earlier)]:
            yield from _differences(earlier.get(key), now.get(key), key if not name else f"{name}.{key}")
    elif earlier != now:
        yield f"{name} was {earlier!r} and is {now!r}"


def some(items: Iterable[str]) -> str:
    """Returns the first of several paths or differences as a list, and how many more there are."""
    return shorten(items, 4, longest=300)
