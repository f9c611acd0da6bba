"""Reads, lists and writes files and objects, which one address names: a path, or `gs://`, `s3://` and others.

A bucket has no folders, no rename and no lock.  An object appears whole or not at all, and a condition of the store
makes "create only if absent".  Another process may write at any time, so no listing is kept.
"""

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import IO, NamedTuple

from flax_vae.convert.files.address import Place, address_below, address_errors, address_of, connect, is_address
from flax_vae.convert.files.atomic import beside
from flax_vae.convert.files.regular import require_regular
from flax_vae.convert.files.whole_file import atomic_file, sync_file


class ListedFile(NamedTuple):
    """A file, an object or a folder in a listing.

    Attributes:
      name: Path below the listed folder, with slashes.
      size: Number of bytes; 0 for a folder.
      folder: Whether it is a folder.
    """

    name: str
    size: int
    folder: bool


def open_at(place: Place) -> IO[bytes]:
    """Opens a file or object for reading at any position; what is read later raises what the client raises.

    Args:
      place: Path or address.

    Returns:
      Opened file, which the caller closes.

    Raises:
      FileNotFoundError: If it does not exist.
      AddressError: If the store cannot be reached.
    """
    if not is_address(place):
        return open(address_of(place), "rb")
    with address_errors(place):
        return connect(place).open(address_of(place), "rb")


def read_at(place: Place, start: int = 0, stop: int | None = None) -> bytes:
    """Returns the bytes from `start` to `stop` of a file or object; threads may read at the same time.

    Args:
      place: Path or address.
      start: First byte.
      stop: Byte after the last one; None reads to the end.

    Raises:
      FileNotFoundError: If it does not exist.
      AddressError: If the store cannot be reached.
    """
    if is_address(place):
        with address_errors(place):
            part = {} if (start, stop) == (0, None) else {"start": start, "end": stop}
            return connect(place).cat_file(address_of(place), **part)
    with open(address_of(place), "rb") as file:
        file.seek(start)
        return file.read(-1 if stop is None else max(0, stop - start))


def list_at(folder: Place, *, recursive: bool = False) -> list[ListedFile]:
    """Returns what a folder holds, sorted by name; nothing if it does not exist.

    Args:
      folder: Address or path of the folder.
      recursive: Whether to list the files of all folders below it, and no folders.

    Raises:
      AddressError: If the store cannot be reached.
    """
    found = _list_objects(folder, recursive) if is_address(folder) else _list_files(Path(address_of(folder)), recursive)
    return sorted(entry for entry in found if not (recursive and entry.folder))


def _list_files(root: Path, recursive: bool) -> list[ListedFile]:
    paths = [(path, path.is_dir()) for path in (root.rglob("*") if recursive else root.glob("*"))]
    return [
        ListedFile(path.relative_to(root).as_posix(), 0 if folder or not path.exists() else path.stat().st_size, folder)
        for path, folder in paths
    ]


def _list_objects(folder: Place, recursive: bool) -> list[ListedFile]:
    entries = []
    with address_errors(folder), contextlib.suppress(FileNotFoundError):
        store = connect(folder)
        root = store._strip_protocol(address_of(folder)).rstrip("/")
        entries = list(store.find(root, detail=True).values()) if recursive else store.ls(root, detail=True)
    return [
        ListedFile(name, entry["size"] or 0, entry["type"] == "directory")
        for entry in entries
        # A store may list the folder itself, as an object of no bytes.
        if (name := entry["name"].rstrip("/").removeprefix(root).lstrip("/"))
    ]


def size_at(place: Place) -> int:
    """Returns the number of bytes of a file or object, as `flax_vae.convert.files.require_regular` does.

    Args:
      place: Path or address.
    """
    return require_regular(address_of(place))


def stamp_at(place: Place) -> str:
    """Returns a text that changes whenever a file or object is written: its size and times, or its version in a store.

    Args:
      place: Path or address.

    Raises:
      FileNotFoundError: If it does not exist.
      FileError: If it is a folder.
      AddressError: If the store cannot be reached.
    """
    size = require_regular(address_of(place))
    if not is_address(place):
        status = os.stat(address_of(place))
        return f"{size} {status.st_mtime_ns} {status.st_ctime_ns}"
    with address_errors(place):
        return f"{size} {connect(place).ukey(address_of(place))}"


def exists_at(place: Place) -> bool:
    """Returns whether there is a file, an object or a folder.

    Args:
      place: Path or address.

    Raises:
      AddressError: If the store cannot be reached.
    """
    if not is_address(place):
        return os.path.exists(address_of(place))
    with address_errors(place), contextlib.suppress(FileNotFoundError):
        # `exists` of a file system answers no where it could not ask.
        connect(place).info(address_of(place))
        return True
    return False


def write_at(place: Place, data: bytes) -> None:
    """Writes a file or object whole, in the place of one that exists.

    Args:
      place: Path or address.
      data: Content.

    Raises:
      OSError: If it cannot be written; `AddressError` for an address.
    """
    if is_address(place):
        with address_errors(place):
            connect(place).pipe_file(address_of(place), data)
        return
    with atomic_file(address_of(place), force=True) as file:
        file.write_bytes(data)


def create_at(place: Place, data: bytes) -> None:
    """Writes a file or object whole, only if there is none: of several that try at once, one succeeds.

    A client that lost the answer of the store tries again, and may then find its own object: a caller that must know
    whether it was first writes a unique value and compares it after a `FileExistsError`.

    Args:
      place: Path or address.
      data: Content.

    Raises:
      FileExistsError: If there is one.
      OSError: If it cannot be written; `AddressError` for an address.
    """
    if is_address(place):
        with address_errors(place):
            connect(place).pipe_file(address_of(place), data, mode="create")
        return
    path = Path(address_of(place))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path, "partial", secrets.token_hex(4))
    try:
        temporary.write_bytes(data)
        sync_file(temporary)
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def put_folder(folder: Path, target: Place) -> None:
    """Writes the files of a local folder into one of a bucket, the largest first and so a configuration last.

    Args:
      folder: Local folder.
      target: Address of the folder to write.

    Raises:
      AddressError: If one cannot be written.
    """
    for entry in sorted(list_at(folder, recursive=True), key=lambda entry: -entry.size):
        write_at(address_below(target, *entry.name.split("/")), (folder / entry.name).read_bytes())


def fetch_folder(source: Place, folder: Path) -> None:
    """Reads the objects of one folder of a bucket, without those below it, into a local folder.

    Args:
      source: Address of the folder.
      folder: Local folder, which exists.

    Raises:
      AddressError: If one cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for entry in list_at(source, recursive=True):
        path = folder / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with address_errors(source):
            connect(source).get_file(address_below(source, *entry.name.split("/")), str(path))


def copy_at(source: Place, target: Place) -> None:
    """Copies an object inside one store, without reading it here.

    Args:
      source: Address of the object.
      target: Address of the copy, in the same store.

    Raises:
      OSError: If it cannot be copied.
    """
    with address_errors(source):
        connect(source).cp_file(address_of(source), address_of(target))


def remove_at(place: Place, *, recursive: bool = False) -> None:
    """Removes a file or object; does nothing if there is none.

    Args:
      place: Address or path.
      recursive: Whether to remove a folder and everything below it.

    Raises:
      OSError: If it cannot be removed; `AddressError` for an address.
    """
    if is_address(place):
        with contextlib.suppress(FileNotFoundError), address_errors(place):
            connect(place).rm(address_of(place), recursive=recursive)
        return
    path = Path(address_of(place))
    if recursive and path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
