"""Writes files whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from flax_vae.convert.files.atomic import keep_permissions, unfinished


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Gives a temporary name beside `path`; what was written there takes the final name when the block succeeds.

    When the block fails, the temporary file is removed and `path` is what it was before.  The new file gets the
    permissions of the one that it replaces.  What a killed process left unfinished of it is removed; see
    `flax_vae.convert.files.atomic`.

    Args:
      path: Path of the file.
      force: Whether to replace an existing file.

    Yields:
      Path of the temporary file.

    Raises:
      FileExistsError: If `path` exists and `force` is not set.
      FileNotFoundError: If `path` is a link to nothing.
      IsADirectoryError: If `path` is a folder.
      OSError: If it cannot be written, as on a full disk; the message names `path`.
    """
    refuse_dead_link(path)
    target = Path(path).resolve()  # a link keeps pointing to where it points
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if target.exists() and not force:
        raise FileExistsError(f"{path} exists already; replace it with force=True (--force), or choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(target) as temporary:
        try:
            yield temporary
            sync_file(temporary)
            if target.exists():
                keep_permissions(target, temporary)
            temporary.replace(target)
        except BaseException as error:  # an interrupt, too, leaves nothing behind
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno and error.filename in (None, temporary, str(temporary)):
                raise OSError(error.errno, f"{path} could not be written: {error.strerror or error}") from error
            raise
    sync_folder(target.parent)


def refuse_dead_link(path: str | os.PathLike[str]) -> None:
    """Refuses a link whose target does not exist: a file written through it would appear in an unexpected place.

    Raises:
      FileNotFoundError: If it is such a link; names the target.
    """
    if os.path.islink(path) and not os.path.exists(path):
        raise FileNotFoundError(
            f"{path} is a link to {os.readlink(path)}, which does not exist; remove the link, or choose another name"
        )


def sync_file(path: Path) -> None:
    """Waits until the content is on the disk: a rename may otherwise survive a power cut that the content does not."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Waits until the names are on the disk, where the system can do that for folders (Windows cannot)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
