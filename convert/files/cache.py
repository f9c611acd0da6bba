"""The folder in which copies and indices of data are kept, to be made again whenever they are missing."""

import hashlib
import os
import shutil
import sys
from pathlib import Path

from flax_vae.convert.files.address import Place, address_of, is_address
from flax_vae.convert.files.objects import open_at, stamp_at
from flax_vae.convert.files.whole_file import atomic_file


def cache_folder() -> Path:
    """Returns the folder `FLAX_VAE_CACHE`, or else `flax-vae` in the user's cache folder, usually `~/.cache`."""
    if given := os.environ.get("FLAX_VAE_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME", "")
    usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return (Path(base) if os.path.isabs(base) else usual) / "flax-vae"


def local_copy(place: Place) -> Path:
    """Returns the path of a file, or that of a copy of an object of a bucket, which is fetched once for each version.

    Args:
      place: Path or address.

    Raises:
      FileNotFoundError: If it does not exist.
      FileError: If it is a folder.
      OSError: If it cannot be fetched or the copy cannot be written.
    """
    if not is_address(place):
        return Path(address_of(place))
    address = address_of(place)
    key = hashlib.sha256(f"{address} {stamp_at(place)}".encode()).hexdigest()[:32]
    copy = cache_folder() / "copies" / key / address.rpartition("/")[2]
    if not copy.is_file():
        with open_at(place) as source, atomic_file(copy, force=True) as partial, partial.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 22)
    return copy
