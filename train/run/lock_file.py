"""Locks a run directory against a second trainer."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from flax_vae.convert.files import open_locked, release
from flax_vae.train.errors import RunError

LOCK = ".lock"


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
        descriptor = open_locked(path)
    except BlockingIOError:
        raise RunError(
            f"{path} is held by {_holder(path)}: it is training in this directory; wait for its end or choose another "
            "workdir",
            path=path,
        ) from None
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); choose another workdir", path=path) from error
    if descriptor is None:
        path.unlink(missing_ok=True)
        yield f"{path} cannot be locked on this file system; let no second trainer use {folder}"
        return
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield None
    finally:
        path.unlink(missing_ok=True)  # while it is locked, so that no other process's file is removed
        release(descriptor)


def _holder(path: Path) -> str:
    try:
        content = json.loads(path.read_bytes()[:4096])
        return f"process {content['pid']} on {content['host']}"
    except (KeyError, OSError, TypeError, ValueError):  # the holder has not written its name yet
        return "another process"
