"""Shards in a bucket: written here first, then object by object; read here again before they are compared.

Files of a bucket cannot be mapped into memory or written in place, and an object appears whole.  So the formats know
only local folders, and an interrupted upload leaves no shard.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flax_vae.convert.errors import FileError
from flax_vae.convert.files import (
    Place,
    address_below,
    list_at,
    local_copy,
    read_at,
    scratch_folder,
    size_at,
    write_at,
)
from flax_vae.convert.latents.index import ShardRecord
from flax_vae.convert.latents.shard import ShardContent, ShardNotes, require_listed
from flax_vae.convert.latents.storage import ShardStorage

_THREADS = 16  # they wait for the store
_LONGEST_HEADER = 1 << 24  # bytes; longer ones are refused when they are read


class BucketShards(ShardStorage):
    """Shards of a format, in a bucket."""

    def __init__(self, local: ShardStorage):
        """Stores the format."""
        self._local = local
        self.storage, self.one_size = local.storage, local.one_size

    @property
    def files(self) -> str:
        """Regular expression of the names of all objects."""
        return self._local.files

    def file(self, number: int) -> str:
        """Returns the name of the object that is written last."""
        return self._local.file(number)

    def others(self, folder: Path, number: int) -> list[str]:
        """Returns the names of the other objects."""
        return self._local.others(folder, number)

    def require(self, dtype: str) -> None:
        """Checks that the format can be written."""
        self._local.require(dtype)

    def write(self, folder: Path, number: int, content: ShardContent, plan: str) -> None:
        """Writes a shard to a local folder, then its objects."""
        with scratch_folder() as scratch:
            self._local.write(scratch, number, content, plan)

            def upload(name: str) -> None:
                write_at(address_below(folder, name), (scratch / name).read_bytes())

            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(upload, self._local.others(scratch, number)))
            upload(self.file(number))

    def notes(self, folder: Path, number: int) -> ShardNotes:
        """Reads the notes on a shard, and compares the lengths of its objects, without reading latents."""
        with scratch_folder() as scratch:
            copy_start(address_below(folder, self.file(number)), scratch / self.file(number))

            def imitate(name: str) -> None:
                (scratch / name).touch()
                os.truncate(scratch / name, size_at(address_below(folder, name)))

            self._each(imitate, folder, self._local.others(scratch, number))
            return self._local.notes(scratch, number)

    def sources(self, folder: Path, number: int) -> dict[str, str]:
        """Reads all of a shard."""
        with scratch_folder() as scratch:

            def fetch(name: str) -> None:
                (scratch / name).write_bytes(read_at(address_below(folder, name)))

            fetch(self.file(number))
            self._each(fetch, folder, self._local.others(scratch, number))
            return self._local.sources(scratch, number)

    def _each(self, function: Callable[[str], None], folder: Place, names: Iterable[str]) -> None:
        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(function, names))
        except FileNotFoundError as error:  # the shard itself exists
            raise FileError(f"{folder} is incomplete ({error}); encode the images again") from error


def copy_start(place: Place, path: Path) -> None:
    """Copies an object up to the end of its safetensors header into a sparse file of equal length.

    An object of another kind is copied whole.

    Args:
      place: Address of the object.
      path: The file to write.
    """
    size = size_at(place)
    stop = size
    if path.suffix == ".safetensors":
        stop = min(size, 8 + min(int.from_bytes(read_at(place, 0, min(size, 8)), "little"), _LONGEST_HEADER))
    path.write_bytes(read_at(place, 0, stop) if stop else b"")
    os.truncate(path, size)


def require_sizes(folder: Place, records: Iterable[ShardRecord]) -> None:
    """Compares the lengths of shards in a bucket with an index, by one listing.

    Raises:
      FileError: If a shard is missing or truncated.
      AddressError: If the bucket cannot be reached.
    """
    sizes = {entry.name: entry.size for entry in list_at(folder)}
    for record in records:
        size = sizes.get(record.file)
        if size is None or record.size not in (None, size):
            found = "is missing" if size is None else f"has {size:,} bytes, not {record.size:,}"
            raise FileError(
                f"{address_below(folder, record.file)} {found}, and the index lists it; run the same flax-vae encode, "
                "which makes it again"
            )


def local_shard(folder: Place, record: ShardRecord) -> Path:
    """Returns the folder with a local copy of a shard in a bucket, which is fetched again if it is damaged.

    Raises:
      FileError: If the shard is not the one that the index describes.
      AddressError: If the bucket cannot be reached.
      OSError: If it cannot be written, as on a full disk.
    """
    place = address_below(folder, record.file)
    copy = local_copy(place)
    try:
        require_listed(copy.parent, record)
    except FileError:
        copy.unlink(missing_ok=True)
        require_listed(local_copy(place).parent, record)
    return copy.parent
