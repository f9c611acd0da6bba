"""ArrayRecord files of encoded images or of TensorFlow's examples; the package that reads them is an extra."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from flax_vae.convert.console import printable
from flax_vae.convert.errors import shorten
from flax_vae.convert.extras import needed
from flax_vae.errors import DataError
from flax_vae.images.read import StorageError
from flax_vae.images.sources.addresses import copied, files_at, split_options
from flax_vae.images.sources.annotations import decode_text, label_number
from flax_vae.images.sources.parquet import CAPTIONS, TABLE_OPTIONS
from flax_vae.images.sources.protocol import FileSource


class ArrayRecordSource(FileSource):
    """ArrayRecord files whose records are encoded images, JPEG or PNG for example (the `arrayrecord` extra).

    The address is one file, or several by braces or a pattern such as `data/train-*.array_record`, which come in the
    order of their names.  Objects in a bucket are copied to the cache folder first.

    A record may also be a `tf.train.Example`, as TensorFlow Datasets writes them, with the image in the feature `image`
    or `image/encoded`, its label in `label` and its caption in `caption` or `text`.  The options `column=`, `label=`
    and `caption=` choose other features.  Other records have no labels.
    """

    def __init__(self, address: str):
        """Opens the files.

        Raises:
          DataError: If there are none, one is damaged, or the package is not installed.
        """
        self.where = printable(address)
        with needed(f"{self.where} needs the package array_record", "arrayrecord", raises=DataError):
            from array_record.python.array_record_data_source import (  # pyright: ignore[reportMissingImports]
                ArrayRecordDataSource,
            )
        place, self._options = split_options(address, TABLE_OPTIONS)
        files = [str(copied(file)) for file in files_at(place)]
        missing = next((file for file in files if not os.path.isfile(file)), None)
        if missing is not None:
            raise DataError(f"{printable(missing)} is not a file and matches none; give a file or a pattern")
        try:
            self._records = ArrayRecordDataSource(files)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"{self.where} cannot be read as ArrayRecord ({error})", path=self.where) from error

    def __len__(self) -> int:
        return len(self._records)

    def file(self, index: int) -> bytes:
        """Returns the encoded image of a record."""
        content = self._record(index)
        features = read_example(content)
        if features is None:
            return content
        image = self._feature(features, "column", ("image", "image/encoded"))
        if not isinstance(image, bytes):
            raise DataError(
                f"{self.printable_name(index)} has no encoded image; its features: {shorten(features) or 'none'}; name "
                "one with column="
            )
        return image

    def label(self, index: int) -> int | None:
        """Returns the label of an example; -1 is none."""
        value = self._feature(read_example(self._record(index)) or {}, "label", ("label",))
        return None if value is None or value == -1 else label_number(value, self.printable_name(index))

    def caption(self, index: int) -> str | None:
        """Returns the caption of an example."""
        value = self._feature(read_example(self._record(index)) or {}, "caption", CAPTIONS)
        return decode_text(value, self.printable_name(index)) if isinstance(value, bytes) else None

    def _feature(self, features: Mapping[str, bytes | int], option: str, usual: Sequence[str]) -> bytes | int | None:
        names = [self._options[option]] if option in self._options else usual
        return next((features[name] for name in names if name in features), None)

    def _record(self, index: int) -> bytes:
        try:
            return self._records[index]
        except (OSError, RuntimeError, ValueError) as error:
            # Never skipped as a bad image is: the reader's later answers may differ after an error.
            raise StorageError(
                f"{self.printable_name(index)} cannot be read ({error}); check the file, start again"
            ) from error


def read_example(content: bytes) -> dict[str, bytes | int] | None:
    """Returns the first string or integer of each feature of a `tf.train.Example`, or None for other records.

    Source: tensorflow/core/example/example.proto and feature.proto, and the encoding of protocol buffers.
    """
    if not content.startswith(b"\n"):  # no image format that is known by its content begins so
        return None
    found: dict[str, bytes | int] = {}
    try:
        for features in _fields(content, 1):
            for entry in _fields(features, 1):
                (name,), (feature,) = _fields(entry, 1), _fields(entry, 2)
                for strings in _fields(feature, 1):
                    for value in _fields(strings, 1)[:1]:
                        found[bytes(name).decode()] = bytes(value)
                for integers in _fields(feature, 3):
                    for value in _fields(integers, 1)[:1]:
                        number = value if isinstance(value, int) else _varint(value, 0)[0]
                        found[bytes(name).decode()] = number - (1 << 64) if number >> 63 else number
    except (IndexError, TypeError, ValueError):
        return None
    return found


def _fields(message: Any, wanted: int) -> list[Any]:
    """Returns the values of one field of a message: views of bytes, or integers."""
    view, at, found = memoryview(message), 0, []
    while at < len(view):
        key, at = _varint(view, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(view, at)
        else:
            size, at = (8 if kind == 1 else 4, at) if kind in (1, 5) else _varint(view, at)
            value, at = view[at : at + size], at + size
            if kind not in (1, 2, 5) or at > len(view):
                raise ValueError("not a message")
        if key >> 3 == wanted:
            found.append(value)
    return found


def _varint(view: Any, at: int) -> tuple[int, int]:
    """Returns an integer and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = view[at + shift // 7]
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, at + shift // 7 + 1
    raise ValueError("an integer of more than 64 bits")
