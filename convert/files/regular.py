"""Regular files only: opening a pipe or a device can wait forever or never end."""

import os
import stat
from pathlib import Path

from flax_vae.convert.errors import FileError
from flax_vae.convert.files.address import address_errors, address_of, connect, is_address


def require_regular(path: str | os.PathLike[str]) -> int:
    """Returns the size in bytes of a regular file, of the one that a link leads to, or of an object in a bucket.

    Args:
      path: Path or address of the file.

    Raises:
      FileNotFoundError: If there is no such file.
      FileError: If it is a folder, a pipe, a socket or a device.
      AddressError: If the bucket cannot be reached.
    """
    if is_address(path):
        with address_errors(path):
            info = connect(path).info(address_of(path))
        if info["type"] == "directory":
            raise FileError(f"{address_of(path)} is a folder; expected an object", path=path)
        return info["size"]
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
    raise FileError(f"{path} is {kind}; expected a regular file", path=path)


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """Returns the content of a regular file, or of an object in a bucket.

    Args:
      path: The file.
      limit: Largest size in bytes that is read.

    Raises:
      FileNotFoundError: If there is no such file.
      FileError: If it is not a regular file, or is larger than `limit`.
    """
    size = require_regular(path)
    if size > limit:
        raise FileError(f"{path} has {size:,} bytes; expected at most {limit:,} in a file of this kind", path=path)
    if is_address(path):
        with address_errors(path):
            return connect(path).cat_file(address_of(path))
    return Path(path).read_bytes()
