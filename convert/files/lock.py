"""Locks between processes, which the kernel releases however their holder ends.

The package `filelock` (4.2) does not fit.  It cannot lock a folder itself, its lock file stays behind and does not name
the holder, and its shared locks need an SQLite database or marker files.  Of the errors of file systems without locks,
it handles only ENOSYS.
"""

import contextlib
import errno
import os
from pathlib import Path

_TRIES = 100  # to lock a file that other processes keep renaming or removing
# Errors of file systems without locks.  EBADF: NFS locks a folder, which cannot be opened for writing, not exclusively.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF}


def open_locked(path: Path, *, folder: bool = False, shared: bool = False, follow_links: bool = True) -> int | None:
    """Opens and locks a file, which is created if missing, or an existing folder.

    Args:
      path: Path of the file or folder.
      folder: Whether it is a folder.
      shared: Whether other processes may hold a shared lock too.
      follow_links: Whether `path` may be a symbolic link.

    Returns:
      Descriptor for `release`; None if the system or the file system does not support locks.

    Raises:
      BlockingIOError: If another process holds the lock.
      OSError: If it cannot be opened or locked.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    flags = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT
    flags |= os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    for _ in range(_TRIES):
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            # Its holder may have renamed or removed it between the two calls.
            if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=follow_links)):
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            if error.errno in _UNSUPPORTED:
                return None
            raise
        os.close(descriptor)
    raise BlockingIOError(errno.EAGAIN, "other processes keep replacing it", str(path))


def release(descriptor: int | None) -> None:
    """Releases a lock of `open_locked`; does nothing for None.

    Args:
      descriptor: File descriptor of the lock, or None.
    """
    if descriptor is None:
        return
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked process may hold the descriptor too
    os.close(descriptor)
