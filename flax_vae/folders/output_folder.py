"""An output folder with a plan file; a later run resumes only if its plan is identical."""

import contextlib
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax_vae.convert.console import printable
from flax_vae.convert.errors import shorten
from flax_vae.convert.files import (
    BucketLock,
    Place,
    address_of,
    beside,
    is_address,
    is_lock,
    list_at,
    open_locked,
    partial_of,
    read_object,
    release,
    replace_folder,
    restore,
    write_at,
)
from flax_vae.errors import UserError


def plan_sha256(plan: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a plan, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def write_or_check_plan(folder: Path, file: str, plan: Mapping[str, Any], remedy: str) -> None:
    """Writes the plan into the folder, or compares it with that of an earlier start.

    Args:
      folder: Output folder.
      file: Name of the plan file.
      plan: Values that JSON can express.
      remedy: Advice for the error message if the plans differ.

    Raises:
      UserError: If the folder holds other files, or a different plan; names the differences.
    """
    if read_plan(folder, file, remedy) is None:
        require_empty(folder, file)
        write_plan(folder, file, plan)
    require_same_plan(folder, read_plan(folder, file, remedy) or {}, plan, remedy)


def read_plan(folder: Path, file: str, remedy: str) -> dict[str, Any] | None:
    """Returns the plan of an earlier start; None if there was none.

    Raises:
      UserError: If the file is damaged.
    """
    try:
        return read_object(folder / file, 1 << 28)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{printable(folder / file)} is damaged ({error}); {remedy}", path=folder / file) from error


def write_plan(folder: Path, file: str, plan: Mapping[str, Any]) -> None:
    """Writes a plan, or replaces that of an earlier start."""
    write_at(folder / file, (json.dumps(plan, indent=2) + "\n").encode())


def require_empty(folder: Path, *files: str) -> None:
    """Checks that a folder holds only these files and partial files of a killed process.

    Raises:
      UserError: If it holds anything else.
    """
    present = [entry.name for entry in list_at(folder)]
    others = [name for name in present if name not in files and not partial_of(name) and not is_lock(name)]
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


def require_ours(folder: Path, ours: re.Pattern[str], signs: Sequence[str]) -> bool:
    """Checks that a folder holds only files with these names and partial files of a killed process.

    Args:
      folder: Folder to replace.
      ours: Pattern of the names of files that may be in it.
      signs: Names of files one of which is in it, because other programs write files with the other names too.

    Returns:
      Whether the folder holds any file.

    Raises:
      UserError: If the folder holds anything else.
    """
    present = sorted(entry.name for entry in folder.iterdir())
    signed = not present or any(name in signs for name in present)
    others = [name for name in present if not (signed and ours.fullmatch(name)) and not partial_of(name)]
    if others:
        raise UserError(
            f"{printable(folder)} holds something else ({some([*map(printable, others)])}) and is never replaced; "
            "choose another folder",
            path=folder,
        )
    return bool(present)


def refuse_to_replace(folder: Place) -> None:
    """Refuses to replace the content of a folder in a bucket, where nothing can be renamed.

    Raises:
      UserError: If the folder is in a bucket.
    """
    if is_address(folder):
        raise UserError(
            f"{address_of(folder)} is in a bucket, where --force would mix old and new files; choose another address, "
            "or remove its objects first"
        )


@contextlib.contextmanager
def replaced(folder: Path, ours: re.Pattern[str], signs: Sequence[str]) -> Iterator[Path]:
    """Yields a new folder that replaces an existing one when the block ends.

    Until then the existing folder can be read.  If the block fails or the process is killed, the new folder stays
    beside it and is used again by the next start.  A folder without files is yielded itself.

    Args:
      folder: Folder, locked by the caller.
      ours: Pattern of the names of files that may be in it.
      signs: Names of files one of which is in it; see `require_ours`.

    Raises:
      UserError: If the folder holds anything else, or is a mount point.
    """
    refuse_to_replace(folder)
    target, fresh = _places(folder)
    if not require_ours(target, ours, signs) and not fresh.exists():
        yield folder
        return
    if target.is_mount():
        raise UserError(
            f"{printable(folder)} is a mount point, which cannot be replaced; choose a folder in it", path=folder
        )
    with locked(fresh):
        yield fresh
        replace_folder(fresh, target)


@contextlib.contextmanager
def continued(folder: Path) -> Iterator[Path]:
    """Yields the folder itself; afterwards removes a folder that a killed `replaced` left beside it.

    Args:
      folder: Folder, locked by the caller.
    """
    if is_address(folder):
        yield folder
        return
    _, fresh = _places(folder)
    yield folder
    if fresh.exists():
        with contextlib.suppress(UserError), locked(fresh):  # another process may be removing it
            shutil.rmtree(fresh, ignore_errors=True)


def _places(folder: Path) -> tuple[Path, Path]:
    target = folder.resolve()  # replaces the target of a link, not the link
    return target, beside(target, "forced")


def remove_partial_files(folder: Path, ours: re.Pattern[str]) -> None:
    """Removes partial files of a killed process with these names, also in sub-folders; a bucket has none."""
    if is_address(folder):
        return
    for path in folder.rglob(".*.partial"):
        if ours.fullmatch(partial_of(path.name) or ""):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, *, member: int | None = None) -> Iterator[None]:
    """Locks a folder against other processes; creates it if it is missing.

    The lock ends with the process.  On file systems without locks, the folder is not protected.  In a bucket, a member
    is protected against a second one of its number alone.

    Args:
      folder: Output folder, or an `epath.Path` in a bucket.
      member: Index of this process if several share the folder; they pass different ones.

    Raises:
      UserError: If another process works there, or it is a file.
    """
    if is_address(folder):
        try:
            lock = BucketLock(folder if member is None else folder / f".lock-{member:05d}")
        except BlockingIOError as error:
            raise UserError(f"{error}; wait for its end", path=folder) from None
        for note in lock.notes:
            print(f"{address_of(folder)}: {note}", file=sys.stderr)
        with lock:
            yield
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder", path=folder)
    restore(folder.resolve())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = open_locked(folder, folder=True, shared=member is not None)
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
    """Joins the first of several paths or differences, and adds the number of the others."""
    return shorten(items, 4, longest=300)
