"""Locks a run directory against a second trainer."""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from flax_vae.train.errors import RunError

LOCK = ".lock"
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[str | None]:
    """Locks a run directory, which is created if missing, for one trainer.

    The kernel holds the lock and releases it however the process ends, so nothing is left to clean up after `kill -9`.
    In a run of several processes, only the first takes the lock.

    Args:
      folder: Run directory.

    Yields:
      None; or, if the file system supports no locks, a sentence that says so.  The run can continue, without protection
      against a second trainer.

    Raises:
      RunError: If another process holds the lock (names the process), or if the directory cannot be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); choose another workdir", path=path) from error
    if descriptor is None:
        yield f"{path} cannot be locked on this file system; let no second trainer use {folder}"
        return
    try:
        yield None
    finally:
        path.unlink(missing_ok=True)  # while it is locked, so that no other process's file is removed
        os.close(descriptor)


def _acquire(path: Path) -> int | None:
    """Returns the descriptor that holds the lock, or None if locks are not supported."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_still(path, descriptor):  # removed by its holder between our two calls
                os.close(descriptor)
                continue
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise RunError(f"{path} is held by {holder}: it is training in this directory; wait for its end or "
                           "choose another workdir", path=path) from None  # fmt: skip
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _UNSUPPORTED:
                raise
            path.unlink(missing_ok=True)
            return None
        return descriptor


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {content['pid']} on {content['host']}"
    except (KeyError, TypeError, ValueError):  # the holder has not written its name yet
        return "another process"
