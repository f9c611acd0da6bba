"""Parquet tables of encoded images, on disk or in a bucket; the package that reads them is an extra."""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flax_vae.convert.console import printable
from flax_vae.convert.errors import one_line, shorten, suggest
from flax_vae.convert.extras import needed
from flax_vae.convert.files import is_address, open_at
from flax_vae.errors import DataError
from flax_vae.images.read import StorageError
from flax_vae.images.scan import in_threads
from flax_vae.images.sources.addresses import file_name, files_at, split_options
from flax_vae.images.sources.annotations import label_number
from flax_vae.images.sources.protocol import FileSource

TABLE_OPTIONS = ("column", "label", "caption")
CAPTIONS = ("caption", "text")  # columns that are captions if they are strings
_KEPT_BYTES = 1 << 28  # of row groups that were read last
_LABEL, _IMAGE = "label", "image"


class _Rows(NamedTuple):
    """A row group: number of its file, its own number there, and the number of the first row in the table."""

    file: int
    group: int
    first: int


class ParquetSource(FileSource):
    """The rows of Parquet files, each with an encoded image, in the order of the files (the `parquet` extra).

    The address is `FILE.parquet[,column=image][,label=label][,caption=text]`, with braces or wildcards for several
    files of one schema.  A column of images holds bytes, or `{"bytes", "path"}` as Hugging Face stores them.  Without
    `column=` it is `image`, or else the only one of that kind.  A column `label` of integers gives the labels, whose
    names are those in Hugging Face's metadata, and a column `caption` or `text` the captions.

    Parquet compresses row groups, so that one row costs the reading of its whole group.  Groups of 256 MB in total are
    kept, which is enough for reading in order by many threads.  Draws at random from a large table are faster from
    `hf:`, which makes an uncompressed copy.
    """

    def __init__(self, address: str):
        """Reads the schemas.

        Raises:
          DataError: If there are no files, one is damaged or has no such columns, or the package is not installed.
          StorageError: If a file cannot be fetched.
        """
        self.where = printable(address)
        place, options = split_options(address, TABLE_OPTIONS)
        with needed(f"{self.where} needs the package pyarrow", "parquet", raises=DataError):
            import pyarrow
            from pyarrow import parquet
        self._pyarrow, self._parquet = pyarrow, parquet
        self._names = files_at(place)
        self._footers: list[Any] = []
        for _, footer in in_threads(self._footer, range(len(self._names))):
            if isinstance(footer, DataError):
                raise footer
            self._footers.append(footer)
        schema = self._footers[0].schema.to_arrow_schema()
        for name, footer in zip(self._names, self._footers, strict=True):
            if not footer.schema.equals(self._footers[0].schema):
                raise DataError(
                    f"{printable(name)} has other columns than {printable(self._names[0])}; read them one by one"
                )
        self._column = self._image_column(schema, options)
        self._label, self.classes = self._label_column(schema, options)
        self._caption = self._caption_column(schema, options)
        self._groups: list[_Rows] = []
        count = 0
        for number, footer in enumerate(self._footers):
            for group in range(footer.num_row_groups):
                self._groups.append(_Rows(number, group, count))
                count += footer.row_group(group).num_rows
        self._count, self._firsts = count, np.array([group.first for group in self._groups], np.int64)
        self._kept: OrderedDict[tuple[int, str], Future[Any]] = OrderedDict()
        self._lock = threading.Lock()
        if self._label is not None:
            self.label_notes = (f"labels are the column {printable(self._label)}",)

    def __len__(self) -> int:
        return self._count

    def printable_name(self, index: int) -> str:
        """Returns the name of the file, or of the pattern, and the number of the row."""
        return f"{printable(file_name(self._names[0]) if len(self._names) == 1 else file_name(self.where))}[{index}]"

    def file(self, index: int) -> Path | bytes:
        """Returns the encoded image of a row, or its path."""
        entry = self._value(index, self._column)
        if isinstance(entry, dict):
            entry = Path(entry["path"]) if entry.get("bytes") is None and entry.get("path") else entry.get("bytes")
        if not entry:
            raise DataError(f"{self.printable_name(index)} is empty; filter such rows out")
        return entry

    def label(self, index: int) -> int | None:
        """Returns the label of a row; -1, as Hugging Face marks unknown ones, is none."""
        if self._label is None:
            return None
        value = self._value(index, self._label)
        return None if value is None or value == -1 else label_number(value, self.printable_name(index))

    def caption(self, index: int) -> str | None:
        """Returns the caption of a row."""
        return None if self._caption is None else self._value(index, self._caption)

    def _value(self, index: int, column: str) -> Any:
        number = int(np.searchsorted(self._firsts, index, side="right")) - 1
        while self._groups[number].first > index:  # a group without rows begins where the next one does
            number -= 1
        try:
            return self._values(number, column, index)[index - self._groups[number].first].as_py()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.printable_name(index)} has text in column {printable(column)} that is not UTF-8 "
                f"({error.reason}); correct or remove it"
            ) from error

    def _values(self, number: int, column: str, index: int) -> Any:
        """Returns a column of a row group; of several threads that ask for one, the first reads it."""
        with self._lock:
            found = self._kept.get((number, column))
            mine = found is None
            if found is None:
                self._kept[number, column] = found = Future()
            self._kept.move_to_end((number, column))
        if mine:
            try:
                found.set_result(self._read(number, column, index))
            except BaseException as error:
                with self._lock:
                    self._kept.pop((number, column), None)
                found.set_exception(error)
            else:
                self._forget()
        return found.result()

    def _read(self, number: int, column: str, index: int) -> Any:
        rows = self._groups[number]
        try:
            # Opened each time: tables may have more files than a process may keep open.
            with self._opened(self._names[rows.file]) as opened:
                file = self._parquet.ParquetFile(opened, metadata=self._footers[rows.file], pre_buffer=True)
                return file.read_row_group(rows.group, columns=[column]).column(0).combine_chunks()
        except (OSError, UnicodeError, self._pyarrow.ArrowException) as error:
            # Never skipped as a bad image is: a whole group of rows cannot be read.
            raise StorageError(
                f"{self.printable_name(index)} cannot be read ({one_line(error)}); check "
                f"{printable(self._names[rows.file])}, start again"
            ) from error

    def _footer(self, number: int) -> Any:
        name = printable(self._names[number])
        try:
            with self._opened(self._names[number]) as opened:
                footer = self._parquet.ParquetFile(opened).metadata
                footer.schema.to_arrow_schema()  # raises if names or types are damaged
                return footer
        except (FileNotFoundError, IsADirectoryError, UnicodeError, self._pyarrow.ArrowException) as error:
            raise DataError(
                f"{name} cannot be read as Parquet ({one_line(error)}); give the address of a table"
            ) from error
        except OSError as error:
            raise StorageError(f"{name} cannot be read ({error}); start again when it can") from error

    def _opened(self, name: str) -> Any:
        # The package's own reader of files holds no lock of the interpreter.
        return open_at(name) if is_address(name) else self._pyarrow.OSFile(name)

    def _forget(self) -> None:
        """Drops the columns that were used longest ago."""
        with self._lock:
            sizes = {key: kept.result().nbytes for key, kept in self._kept.items() if kept.done()}
            total = sum(sizes.values())
            for key in list(self._kept)[:-1]:
                if total <= _KEPT_BYTES:
                    break
                if key in sizes:
                    total -= sizes[key]
                    del self._kept[key]

    def _image_column(self, schema: Any, options: dict[str, str]) -> str:
        images = [field.name for field in schema if _holds_images(self._pyarrow, field.type)]
        wanted = options.get("column") or (images[0] if len(images) == 1 else _IMAGE)
        if wanted not in images:
            raise DataError(
                f"{self.where} has no column {wanted!r} of encoded images, which are bytes or {{bytes, path}}; its "
                f"columns of that kind: {shorten(images) or 'none'}; name one with column="
            )
        return wanted

    def _label_column(self, schema: Any, options: dict[str, str]) -> tuple[str | None, Sequence[str]]:
        given = options.get("label")
        wanted = given or _LABEL
        if wanted not in schema.names:
            if given:
                raise DataError(f"{self.where} has no column {given!r} of labels; {suggest(given, schema.names)}")
            return None, ()
        kind = schema.field(wanted).type
        if not self._pyarrow.types.is_integer(kind):
            if given:
                raise DataError(f"{self.where} has the column {given!r} of {kind}; labels are integers: convert it")
            return None, ()
        return wanted, class_names(schema, wanted)

    def _caption_column(self, schema: Any, options: dict[str, str]) -> str | None:
        strings = [field.name for field in schema if _is_text(self._pyarrow, field.type)]
        given = options.get("caption")
        if given and given not in strings:
            hint = suggest(given, strings, listed=True) if strings else "it has no column of text"
            raise DataError(f"{self.where} has no column {given!r} of text; {hint}")
        return given or next((name for name in CAPTIONS if name in strings), None)


def class_names(schema: Any, column: str) -> Sequence[str]:
    """Returns the names of classes that Hugging Face stores in a schema's metadata; empty if there are none."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        return tuple(map(str, about["names"])) if about["_type"] == "ClassLabel" else ()
    except (KeyError, TypeError, ValueError):
        return ()


def _holds_images(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    if types.is_struct(kind):
        fields = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
        return "bytes" in fields and _holds_images(pyarrow, fields["bytes"])
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_text(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    if types.is_dictionary(kind):  # as pandas stores categories
        return _is_text(pyarrow, kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
