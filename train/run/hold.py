"""Keeps a run directory for one trainer, on a disk or in a bucket."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flax_vae.convert.files import BucketLock, is_address
from flax_vae.train.errors import RunError
from flax_vae.train.run.lock_file import lock as lock_on_disk


@dataclass(frozen=True)
class Hold:
    """A run directory that this process, or the first of several, holds.

    Attributes:
      notes: Sentences to print.
      require_held: Function that raises a `RunError` if another trainer has taken it over since.
    """

    notes: tuple[str, ...] = ()
    require_held: Callable[[], None] = lambda: None


@contextlib.contextmanager
def hold_directory(folder: Path, *, take_over: bool = False) -> Iterator[Hold]:
    """Holds a run directory, which is created if missing.

    Args:
      folder: Run directory.
      take_over: Whether to take a directory in a bucket over from another trainer; the lock of a disk is released by
        the kernel, however its holder ends.

    Yields:
      Hold of the directory.

    Raises:
      RunError: If another process holds it, or if it cannot be written.
    """
    if is_address(folder):
        try:
            lock = BucketLock(folder, take_over=take_over)
        except BlockingIOError as error:
            raise RunError(
                f"{error}: it is training in this directory; wait for its end or choose another workdir.  If you are "
                "sure that it has ended, --take-over goes on from its last checkpoint; the other one, if it lives, "
                "then ends before it saves",
                path=folder,
            ) from None

        def require_held() -> None:
            try:
                lock.require_held()
            except BlockingIOError as error:
                raise RunError(
                    f"{error}, so this process ends without saving; it was taken for dead, or the other one was "
                    "started with --take-over",
                    path=folder,
                ) from None

        with lock:
            yield Hold(tuple(lock.notes), require_held)
        return
    with lock_on_disk(folder) as warning:
        yield Hold((warning,) if warning else ())
