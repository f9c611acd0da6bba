"""ArrayRecord files of encoded images; the package that reads them is an extra, loaded when it is needed."""

import os

from flax_vae.convert.console import printable
from flax_vae.convert.extras import needed
from flax_vae.errors import DataError
from flax_vae.images.read import StorageError
from flax_vae.images.sources.addresses import copied, files_at
from flax_vae.images.sources.protocol import FileSource


class ArrayRecordSource(FileSource):
    """ArrayRecord files whose records are encoded images, JPEG or PNG for example (the `arrayrecord` extra).

    The address is one file, or several by braces or a pattern such as `data/train-*.array_record`, which come in the
    order of their names.  Objects in a bucket are copied to the cache folder first.  Records have no labels.
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
        files = [str(copied(file)) for file in files_at(address)]
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
        """Returns a record."""
        try:
            return self._records[index]
        except (OSError, RuntimeError, ValueError) as error:
            # Never skipped as a bad image is: the reader's later answers may differ after an error.
            raise StorageError(
                f"{self.printable_name(index)} cannot be read ({error}); check the file, start again"
            ) from error
