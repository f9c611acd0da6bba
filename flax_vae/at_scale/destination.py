"""A folder that is filled over time: what it is to become stands in it first, and nothing else is ever mixed in."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convert.files import new_file
from convert.strict_json import loads_object
from flax_vae.errors import UserError

_PARTIAL = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.partial")  # as `convert.files.new_file` names what is unfinished


def plan_sha256(plan: Mapping[str, Any]) -> str:
    """Of what a plan says, however it is laid out."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def begin(folder: Path, file: str, plan: Mapping[str, Any], remedy: str) -> None:
    """Writes the plan into the folder, or compares it with that of an earlier start.

    Args:
      folder: that is to be filled.
      file: name of the plan's file in it.
      plan: JSON-able values.
      remedy: what to do if it was begun otherwise.

    Raises:
      UserError: if the folder holds something else, or was begun with another plan, naming the differences.
    """
    path = folder / file
    if not path.exists():
        others = [entry.name for entry in folder.iterdir() if not _PARTIAL.fullmatch(entry.name)]
        if others and not path.exists():  # another process may have begun meanwhile
            raise UserError(f"{folder} holds something else ({_some(sorted(others))}); choose an empty or a new folder")
        with new_file(path, force=True) as temporary:
            temporary.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    try:
        earlier = loads_object(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error
    different = list(_differences(earlier, json.loads(json.dumps(plan))))
    if different:
        raise UserError(f"{folder} was begun otherwise: {_some(different)}; {remedy}")


def clear(folder: Path, ours: re.Pattern[str]) -> None:
    """Removes what an earlier start has written into a folder.

    Args:
      folder: to empty.
      ours: the names of all files that may be in it.

    Raises:
      UserError: if the folder holds anything else; nothing is removed then.
    """
    present = sorted(folder.iterdir())
    others = [path.name for path in present if not ours.fullmatch(path.name) and not _PARTIAL.fullmatch(path.name)]
    if others:
        raise UserError(f"{folder} holds something else ({_some(others)}) and is not emptied; choose another folder")
    for path in present:
        path.unlink()


def clean(folder: Path, ours: re.Pattern[str]) -> None:
    """Removes what a start that was killed has left unfinished, of files with these names, also in sub-folders."""
    for path in folder.rglob(".*.partial"):
        match = _PARTIAL.fullmatch(path.name)
        if match and ours.fullmatch(match["name"]):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def held(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Keeps a second command out of a folder, which is made if it is missing.

    The kernel holds the lock, and takes it back however the process ends.  Where a file system has none, nothing but
    care keeps others out.

    Args:
      folder: that is being filled.
      shared: whether others that say so too may work in it.

    Raises:
      UserError: if somebody else works there, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another name for the folder")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{folder} is being written by another process; wait for its end") from None
        yield
    finally:
        os.close(descriptor)


def _differences(earlier: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in [*earlier, *(key for key in now if key not in earlier)]:
            yield from _differences(earlier.get(key), now.get(key), key if not name else f"{name}.{key}")
    elif earlier != now:
        yield f"{name} was {earlier!r} and is {now!r}"


def _some(items: list[str], most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
