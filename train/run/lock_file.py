"""One trainer per run directory."""

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
    """Keeps other trainers out of a run directory, which is made if missing.

    The kernel holds the lock and takes it back however the process ends: there is nothing to clean up after `kill -9`.
    Of a run of several processes only the first takes it.

    Args:
      folder: the run directory.

    Yields:
      None; or, where the file system has no locks, a sentence that says so: the run can go on, and nothing but care
      keeps a second one out.

    Raises:
      RunError: if another process holds it, naming that process; or if the directory cannot be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); choose another workdir") from error
    if descriptor is None:
        yield f"{path} cannot be locked on this file system; let no second trainer use {folder}"
        return
    try:
        yield None
    finally:
        path.unlink(missing_ok=True)  # while it is locked, so that nobody else's is removed
        os.close(descriptor)


def _acquire(path: Path) -> int | None:
    """Returns the descriptor that holds the lock, or None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_still(path, descriptor):  # its holder removed it between our two calls
                os.close(descriptor)
                continue
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise RunError(f"{path} is held by {holder}: it is training in this directory; wait for its end or "
                           "choose another workdir") from None  # fmt: skip
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
    except (KeyError, TypeError, ValueError):  # it has the lock and has not yet written its name
        return "another process"
