"""Shared parts of `atomic_file` and `atomic_folder`: names, locks and the last step.

What is unfinished has one hidden name beside its target, `.NAME.partial`, and its writer holds a lock on it that the
kernel takes back however the process ends.  So the next start that writes the same target finds what a killed one left,
and uses the name again.  A second writer at the same time, which is rare, takes a name of its own.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flax_vae.convert.files.lock import open_locked, release

_LONGEST = 255  # bytes of a name, on nearly all file systems
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux
_HERE = -100  # AT_FDCWD
_TRIES = 100  # to claim a folder that other writers keep renaming
_unfinished: set[Path] = set()  # of this process
_PARTIAL = re.compile(r"\.(?P<name>.+?)(\.[0-9a-f]{8})?\.partial", re.DOTALL)


def partial_of(name: str) -> str | None:
    """Returns the name of the file whose unfinished content has this name; None if it is another kind of name.

    Of a long name the first part is given, with the ending that it has; see `shortened`.

    Args:
      name: Name of a file.
    """
    match = _PARTIAL.fullmatch(name)
    return None if match is None else match["name"]


def beside(path: Path, suffix: str, token: str = "") -> Path:
    """Returns a hidden name in the same folder and so on the same disk.

    Args:
      path: The file or folder that is to be written.
      suffix: Last part of the name.
      token: Part before it, for a name of one's own.
    """
    end = f".{token}.{suffix}" if token else f".{suffix}"
    return path.with_name(f".{shortened(path.name, _LONGEST - 1 - len(end))}{end}")


def shortened(name: str, longest: int = _LONGEST) -> str:
    """Returns a file name of at most `longest` bytes: the name itself, or its start, a digest of it and its ending.

    Args:
      name: File name.
      longest: Largest number of bytes in UTF-8.
    """
    raw = os.fsencode(name)
    if len(raw) <= longest:
        return name
    end = os.path.splitext(name)[1]
    end = end if len(os.fsencode(end)) <= 16 else ""
    end = f"~{hashlib.sha256(raw).hexdigest()[:16]}{end}"
    return raw[: longest - len(os.fsencode(end))].decode("utf-8", "ignore") + end


@contextlib.contextmanager
def unfinished(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Gives the name under which `target` is written, as an existing file or folder that no other process writes.

    A folder may hold what a killed process left.

    Args:
      target: The final name.
      folder: Whether it is a folder.

    Raises:
      OSError: If nothing can be made there; the message names `target`.
    """
    path = beside(target, "partial")
    descriptor = _claim(path, folder)
    if descriptor is None:
        path = beside(target, "partial", secrets.token_hex(4))
        try:
            path.mkdir() if folder else path.touch(exist_ok=False)
        except OSError as error:
            raise OSError(error.errno, f"{target} could not be written: {error.strerror}") from error
    if target.exists():  # what replaces it is at no moment open to more people
        mode = stat.S_IMODE(path.stat().st_mode) & stat.S_IMODE(target.stat().st_mode)
        path.chmod(mode | (0o700 if folder else 0o600))
    _unfinished.add(path)
    try:
        yield path
    finally:
        _unfinished.discard(path)
        release(descriptor)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Gives an empty temporary folder that is removed when the block, or the command, ends.

    Yields:
      Path of the folder.
    """
    with tempfile.TemporaryDirectory(prefix="flax-vae-") as name:
        path = Path(name)
        _unfinished.add(path)
        try:
            yield path
        finally:
            _unfinished.discard(path)


def remove_unfinished() -> None:
    """Removes what this process is writing, from another thread, just before it ends."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def keep_permissions(old: Path, new: Path) -> None:
    """Gives a file or folder the mode of the one that it replaces, and its owner where this process may do so."""
    was, now = old.stat(), new.stat()
    if (was.st_uid, was.st_gid) != (now.st_uid, now.st_gid) and hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(new, was.st_uid, was.st_gid)
    if stat.S_IMODE(was.st_mode) != stat.S_IMODE(now.st_mode):
        new.chmod(stat.S_IMODE(was.st_mode))


def exchange(fresh: Path, target: Path) -> None:
    """Puts a folder in the place of another, which then stands under the name of the first.

    On Linux both change places at once, where the file system can do that.  Elsewhere there are two renames, and
    `restore` undoes the first of them if the process was killed in between.
    """
    if _exchanged(fresh, target):
        return
    old = beside(target, "replaced")
    target.rename(old)
    try:
        fresh.rename(target)
    except BaseException:
        old.rename(target)
        raise
    old.rename(fresh)


def restore(target: Path) -> None:
    """Brings back a folder that a process was killed while replacing, or removes what is left of it; see `exchange`.

    Args:
      target: Path of the folder that was to be replaced.
    """
    old = beside(target, "replaced")
    if old.is_dir() and not target.exists():
        old.rename(target)
    elif old.is_dir():
        shutil.rmtree(old)


def _exchanged(one: Path, other: Path) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):  # an old or another C library
        return False
    return rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _claim(path: Path, folder: bool) -> int | None:
    """Returns the descriptor of a new or leftover file or folder, which it locks; None if another process has it."""
    for _ in range(_TRIES):
        try:
            if folder:
                path.mkdir(exist_ok=True)
            descriptor = open_locked(path, folder=folder, follow_links=False)
        except FileNotFoundError:  # its writer has just given the folder the final name
            continue
        except OSError:  # locked, or of another user; where nothing can be made, the next attempt says why
            return None
        if descriptor is not None and not folder:
            os.ftruncate(descriptor, 0)
        return descriptor
    return None
