"""Keeps a run directory for one trainer, on a disk or in a bucket."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flax_vae.convert.files import is_address
from flax_vae.train.run.bucket_lock import BucketLock
from flax_vae.train.run.lock_file import lock


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

    Raises:
      RunError: If another process holds it, or if it cannot be written.
    """
    if is_address(folder):
        with BucketLock(folder, take_over=take_over) as held:
            yield Hold(tuple(held.notes), held.require_held)
        return
    with lock(folder) as warning:
        yield Hold((warning,) if warning else ())
