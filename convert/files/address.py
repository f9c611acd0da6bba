"""Files and objects by one address: a path on this machine, or `gs://`, `s3://` and what else `fsspec` knows.

A bucket has no folders, no rename and no lock.  An object appears whole or not at all, and a condition of the store
makes "create only if absent".  Another process may write at any time, so no listing is kept.
"""

import contextlib
import functools
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from flax_vae.convert.errors import AddressError, ArgumentError, FileError
from flax_vae.convert.extras import EXTRAS, install_command
from flax_vae.convert.files.atomic import beside
from flax_vae.convert.files.regular import require_regular
from flax_vae.convert.files.whole_file import atomic_file, sync_file

Place = str | os.PathLike[str]  # an address or a path

# `pathlib` keeps one of two slashes, so `Path("gs://bucket/run")` is read as it was meant.  A letter is a drive.
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/+(?P<rest>.*)", re.DOTALL)
_CLIENTS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}  # modules that an extra brings
_FOLDERS = ("gs", "s3")  # schemes whose folders `etils.epath`, orbax and tensorstore all know


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


def is_address(place: Place) -> bool:
    """Returns whether this is the address of a store, `gs://bucket/run` for example, and not a path on this machine."""
    match = _ADDRESS.fullmatch(os.fspath(place))
    return match is not None and match["scheme"] not in ("file", "local")


def address_of(place: Place) -> str:
    """Returns an address with both of its slashes, and without one at its end; or the path, as it is.

    Args:
      place: Address, also as a `Path`, or path; `file://` is a path.
    """
    text = os.fspath(place)
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return text
    if match["scheme"] in ("file", "local"):
        return f"/{match['rest']}"
    return f"{match['scheme']}://{match['rest'].rstrip('/')}"


def address_below(folder: Place, *names: str) -> str:
    """Returns the address, or path, of something below a folder."""
    if is_address(folder):
        return "/".join([address_of(folder), *names])
    return os.path.join(address_of(folder), *names)


def as_path(place: Place) -> Path:
    """Returns a path with the methods of `pathlib`, a `Path`, or an `epath.Path` for a folder in a bucket.

    An `epath.Path` is not an instance of `Path`, and can neither be locked nor renamed in one step.  Its methods raise
    what the client raises; see `address_errors`.

    Raises:
      AddressError: If the client of the store is not installed.
      ArgumentError: If folders of such a store cannot be used.
    """
    if not is_address(place):
        return Path(address_of(place))
    address = address_of(place)
    scheme = address.partition(":")[0]
    if scheme not in _FOLDERS:
        expected = " or ".join(f"{known}://" for known in _FOLDERS)
        raise ArgumentError(f"{address} cannot be used as a folder; expected a path, {expected}", value=address)
    with address_errors(address):
        _file_system(scheme, os.getpid())  # raises if the client is missing
        from etils import epath

        return cast(Path, epath.Path(address))


def open_at(place: Place) -> IO[bytes]:
    """Opens a file or object for reading at any position; what is read later raises what the client raises.

    Raises:
      FileNotFoundError: If it does not exist.
      AddressError: If the store cannot be reached.
    """
    if not is_address(place):
        return open(address_of(place), "rb")
    with address_errors(place):
        return _connect(place).open(address_of(place), "rb")


def read_at(place: Place, start: int = 0, stop: int | None = None) -> bytes:
    """Returns the bytes from `start` to `stop` of a file or object; threads may read at the same time.

    Raises:
      FileNotFoundError: If it does not exist.
      AddressError: If the store cannot be reached.
    """
    if is_address(place):
        with address_errors(place):
            part = {} if (start, stop) == (0, None) else {"start": start, "end": stop}
            return _connect(place).cat_file(address_of(place), **part)
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
        ListedFile(path.relative_to(root).as_posix(), 0 if folder else path.stat().st_size, folder)
        for path, folder in paths
    ]


def _list_objects(folder: Place, recursive: bool) -> list[ListedFile]:
    entries = []
    with address_errors(folder), contextlib.suppress(FileNotFoundError):
        store = _connect(folder)
        root = store._strip_protocol(address_of(folder)).rstrip("/")
        entries = list(store.find(root, detail=True).values()) if recursive else store.ls(root, detail=True)
    return [
        ListedFile(name, entry["size"] or 0, entry["type"] == "directory")
        for entry in entries
        # A store may list the folder itself, as an object of no bytes.
        if (name := entry["name"].rstrip("/").removeprefix(root).lstrip("/"))
    ]


def size_at(place: Place) -> int:
    """Returns the number of bytes of a file or object.

    Raises:
      FileNotFoundError: If it does not exist.
      FileError: If it is a folder.
      AddressError: If the store cannot be reached.
    """
    if not is_address(place):
        return require_regular(address_of(place))
    with address_errors(place):
        info = _connect(place).info(address_of(place))
    if info["type"] == "directory":
        raise FileError(f"{address_of(place)} is a folder; expected an object")
    return info["size"]


def stamp_at(place: Place) -> str:
    """Returns a text that changes whenever a file or object is written: its size and times, or its version in a store.

    Raises:
      FileNotFoundError: If it does not exist.
      FileError: If it is a folder.
      AddressError: If the store cannot be reached.
    """
    if not is_address(place):
        path = address_of(place)
        size, status = require_regular(path), os.stat(path)
        return f"{size} {status.st_mtime_ns} {status.st_ctime_ns}"
    size = size_at(place)
    with address_errors(place):
        return f"{size} {_connect(place).ukey(address_of(place))}"


def exists_at(place: Place) -> bool:
    """Returns whether there is a file, an object or a folder.

    Raises:
      AddressError: If the store cannot be reached.
    """
    if not is_address(place):
        return os.path.exists(address_of(place))
    with address_errors(place), contextlib.suppress(FileNotFoundError):
        # `exists` of a file system answers no where it could not ask.
        _connect(place).info(address_of(place))
        return True
    return False


def write_at(place: Place, data: bytes) -> None:
    """Writes a file or object whole, in the place of one that exists.

    Raises:
      OSError: If it cannot be written; `AddressError` for an address.
    """
    if is_address(place):
        with address_errors(place):
            _connect(place).pipe_file(address_of(place), data)
        return
    with atomic_file(address_of(place), force=True) as file:
        file.write_bytes(data)


def create_at(place: Place, data: bytes) -> None:
    """Writes a file or object whole, only if there is none: of several that try at once, one succeeds.

    A client that lost the answer of the store tries again, and may then find its own object: a caller that must know
    whether it was first writes a unique value and compares it after a `FileExistsError`.

    Raises:
      FileExistsError: If there is one.
      OSError: If it cannot be written; `AddressError` for an address.
    """
    if is_address(place):
        with address_errors(place):
            _connect(place).pipe_file(address_of(place), data, mode="create")
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
            _connect(place).rm(address_of(place), recursive=recursive)
        return
    path = Path(address_of(place))
    if recursive and path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def address_errors(place: Place) -> Iterator[None]:
    """Gives the errors of a store's client one class and the address, in a block that calls nothing else.

    Raises:
      FileNotFoundError: If the object does not exist.
      FileExistsError: If it exists, and was to be created.
      AddressError: For every other error.
    """
    address = address_of(place)
    try:
        yield
    except (AddressError, ArgumentError, FileError):
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{address} does not exist") from None
    except FileExistsError:
        raise FileExistsError(f"{address} exists already") from None
    except ImportError as error:
        module = _CLIENTS.get(address.partition(":")[0])
        fix = install_command(EXTRAS[module]) if module else f"install the package that {error} names"
        raise AddressError(f"{address} needs a package that is missing ({error}): {fix}", value=address) from error
    except Exception as error:  # each client has classes of its own, and none of them a common one
        reason = next((line for line in str(error).splitlines() if line), "") or type(error).__name__
        raise AddressError(
            f"{address} cannot be reached ({reason}); check the name of the bucket, the credentials and the network, "
            "then start again",
            value=address,
        ) from error


def _connect(place: Place) -> Any:
    return _file_system(address_of(place).partition(":")[0], os.getpid())


@functools.cache
def _file_system(scheme: str, process: int) -> Any:
    """Returns the file system of a scheme; threads share it, and a forked process has its own."""
    import fsspec
    from fsspec.config import conf

    if scheme not in fsspec.available_protocols():
        raise ArgumentError(
            f"{scheme}:// is an unknown kind of address; expected a path, gs://, s3://, or another that fsspec knows",
            value=scheme,
        )
    # `etils.epath` connects by itself, and takes this from there too.
    conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem(scheme)
