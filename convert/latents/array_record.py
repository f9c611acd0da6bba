"""Shards in ArrayRecord files, one record for each entry, which grain reads in any order.

A record is a msgpack map with the keys of an entry of `LatentDataset`; an array is a map of `dtype`, `shape` and
`data`.  So msgpack and NumPy are all that another program needs.
"""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from flax_vae.convert.errors import FileError, one_line
from flax_vae.convert.extras import needed
from flax_vae.convert.files import atomic_file
from flax_vae.convert.latents.index import Storage
from flax_vae.convert.latents.sealed import SealedShards, entry_rows, file_sha256
from flax_vae.convert.latents.shard import LatentEntry, ShardContent

_OPTIONS = "group_size:1"  # records that are compressed together; grain advises 1 for random access


class ArrayRecordShards(SealedShards):
    """Shards in `.array_record` files; `read_record` reads a record."""

    storage: Storage = "arrayrecord"
    data = r"latents-\d{5,}\.array_record"

    def require(self, dtype: str) -> None:
        """Checks that the package is installed."""
        _writer()

    def write_data(self, folder: Path, number: int, content: ShardContent) -> dict[str, str]:
        """Writes one file."""
        name = f"latents-{number:05d}.array_record"
        with atomic_file(folder / name, force=True) as temporary:
            try:
                writer = _writer()(str(temporary), _OPTIONS)
                for (entry, parts), optional in zip(entry_rows(content), _optional(content), strict=True):
                    writer.write(_record(entry, parts, optional))
                writer.close()
            except RuntimeError as error:  # of the package, for a full disk for example
                raise OSError(errno.EIO, one_line(error)) from error
            return {name: file_sha256(temporary)}


def read_record(record: bytes) -> dict[str, Any]:
    """Returns the entry of an ArrayRecord record, with the keys of an entry of `LatentDataset`.

    Arrays are read-only views of the record, in the stored dtype.  The function is a transformation for grain:

      >>> import grain                                                                          # doctest: +SKIP
      >>> files = sorted(glob.glob("latents/*.array_record"))                                   # doctest: +SKIP
      >>> source = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(files))          # doctest: +SKIP
      >>> batches = source.shuffle(seed=0).map(read_record).batch(32)                           # doctest: +SKIP

    Args:
      record: Bytes of one record.

    Raises:
      FileError: If the record is not one of `flax-vae encode --format arrayrecord`.
    """
    try:
        values = msgpack.unpackb(record, unicode_errors="surrogateescape")
        return {
            name: np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])
            if isinstance(value, dict)
            else value
            for name, value in values.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError, msgpack.exceptions.UnpackException) as error:
        raise FileError(f"the record does not hold a latent ({error}); expected one of flax-vae encode") from error


def _optional(content: ShardContent) -> list[dict[str, Any]]:
    """Returns label and caption of each entry, if the shard has any."""
    columns: dict[str, list[Any] | None] = {
        "label": None if content.labels is None else content.labels.tolist(),
        "caption": content.captions,
    }
    given = {name: column for name, column in columns.items() if column is not None}
    return [{name: column[row] for name, column in given.items()} for row in range(len(content.entries))]


def _record(entry: LatentEntry, parts: Mapping[str, np.ndarray], optional: Mapping[str, Any]) -> bytes:
    values: dict[str, Any] = {
        part: {"dtype": array.dtype.name, "shape": array.shape, "data": np.ascontiguousarray(array).tobytes()}
        for part, array in parts.items()
    }
    values |= {name: getattr(entry, name) for name in ("name", "height", "width", "number", "flipped")}
    packed = msgpack.packb(values | dict(optional), unicode_errors="surrogateescape")
    assert packed is not None
    return packed


def _writer() -> Any:
    with needed("ArrayRecord files need the package array_record", "arrayrecord", raises=FileError):
        from array_record.python.array_record_module import (  # pyright: ignore[reportMissingImports]
            ArrayRecordWriter,
        )
    return ArrayRecordWriter
