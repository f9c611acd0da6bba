"""Addresses of stores: `gs://`, `s3://` and what else `fsspec` knows, beside paths on this machine."""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from flax_vae.convert.errors import AddressError, ArgumentError, FileError
from flax_vae.convert.extras import EXTRAS, install_command

Place = str | os.PathLike[str]  # an address or a path

# `pathlib` keeps one of two slashes, so `Path("gs://bucket/run")` is read as it was meant.  A letter is a drive.
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/+(?P<rest>.*)", re.DOTALL)
_CLIENTS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}  # modules that an extra brings
_PATHS = ("file", "local")  # schemes of this machine
_NAMES = ("hf",)  # what begins so is a name on a hub, if a wrong one
_FOLDERS = ("gs", "s3")  # schemes whose folders `etils.epath`, orbax and tensorstore all know


def is_address(place: Place) -> bool:
    """Returns whether this is the address of a store, `gs://bucket/run` for example, and not a path on this machine.

    Args:
      place: Path or address.
    """
    match = _ADDRESS.fullmatch(os.fspath(place))
    return match is not None and match["scheme"] not in (*_PATHS, *_NAMES)


def address_of(place: Place) -> str:
    """Returns an address with both of its slashes, and without one at its end; or the path, as it is.

    Args:
      place: Address, also as a `Path`, or path; `file://` is a path.
    """
    text = os.fspath(place)
    match = _ADDRESS.fullmatch(text)
    if match is None or match["scheme"] in _NAMES:
        return text
    if match["scheme"] in _PATHS:
        return f"/{match['rest']}"
    return f"{match['scheme']}://{match['rest'].rstrip('/')}"


def address_below(folder: Place, *names: str) -> str:
    """Returns the address, or path, of something below a folder.

    Args:
      folder: Folder on disk, or its address.
      names: Names of folders, and of the file at the end.
    """
    if is_address(folder):
        return "/".join([address_of(folder), *names])
    return os.path.join(address_of(folder), *names)


def as_path(place: Place) -> Path:
    """Returns a path with the methods of `pathlib`, a `Path`, or an `epath.Path` for a folder in a bucket.

    An `epath.Path` is not an instance of `Path`, and can neither be locked nor renamed in one step.  Its methods raise
    what the client raises; see `address_errors`.

    Args:
      place: Path or address.

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


@contextlib.contextmanager
def address_errors(place: Place) -> Iterator[None]:
    """Gives the errors of a store's client one class and the address, in a block that calls nothing else.

    Those of a path are what they are.

    Args:
      place: Path or address.

    Yields:
      None.

    Raises:
      FileNotFoundError: If the object does not exist.
      FileExistsError: If it exists, and was to be created.
      AddressError: For every other error.
    """
    if not is_address(place):
        yield
        return
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


def connect(place: Place) -> Any:
    """Returns the file system of an address, of `fsspec`; its methods raise what the client raises."""
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
