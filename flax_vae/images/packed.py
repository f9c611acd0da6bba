"""Sources with many images in one file: arrays, Hugging Face data sets, ArrayRecord.

The packages that read the last two are extras, loaded when such an address is given.
"""

import glob
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from flax_vae.convert.console import printable
from flax_vae.convert.extras import needed
from flax_vae.errors import DataError
from flax_vae.images.array_file import load_array
from flax_vae.images.read import StorageError
from flax_vae.images.sources import FileSource, ImageSource


class ArraySource(ImageSource):
    """One array of equally large 8-bit images; an `.npy` file stays on the disk and is mapped into memory.

    An `.npz` file is read into memory; its array is `images` or `arr_0`, or else the only one.
    """

    def __init__(self, file: Path):
        """Opens the file.

        Raises:
          DataError: If the file cannot be read, or is not an array (n, h, w, 3) or (n, h, w, 1) of 8-bit integers.
        """
        self.where = printable(file)
        self._images = load_array(file)
        shape, dtype = self._images.shape, self._images.dtype
        if dtype != np.uint8:
            raise DataError(
                f"{self.where} has dtype {dtype}; expected uint8 in [0, 255]: convert the images", path=self.where
            )
        if len(shape) != 4 or shape[3] not in (1, 3):
            hint = "move the channels last" if len(shape) == 4 and shape[1] in (1, 3) else "store such an array"
            raise DataError(
                f"{self.where} has shape {shape}; expected (n, h, w, 3) or (n, h, w, 1): {hint}", path=self.where
            )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return _to_rgb(self._images[index])

    def size(self, index: int) -> tuple[int, int]:
        """Returns height and width, which all images share."""
        return self._images.shape[1], self._images.shape[2]

    def content(self, index: int) -> memoryview:
        """Returns the bytes of the pixels."""
        return np.ascontiguousarray(self._images[index]).reshape(-1).data

    def decode(self, index: int, content: bytes | memoryview) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the pixels, grey ones as three equal channels."""
        return _to_rgb(np.frombuffer(content, np.uint8).reshape(self._images.shape[1:]))


def _to_rgb(image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(image) if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


class HuggingFaceSource(FileSource):
    """A column of images in one split of a Hugging Face data set, on the hub or on this disk (the `datasets` extra).

    The address is `hf:NAME_OR_PATH[,split=train][,column=image]`.  A path may be what `save_to_disk` wrote, or a
    folder that `load_dataset` understands.
    """

    def __init__(self, address: str):
        """Loads the data set, which may download it.

        Raises:
          DataError: If the data set cannot be loaded, or has no such column of images.
        """
        self.where = printable(address)
        path, options = _parse(address)
        with needed(f"{self.where} needs the package datasets", "datasets", raises=DataError):
            import datasets  # pyright: ignore[reportMissingImports]
        try:
            if Path(path).is_dir() and any((Path(path) / name).is_file() for name in _SAVED_TO_DISK):
                data: Any = datasets.load_from_disk(path)
                data = data[options["split"]] if isinstance(data, datasets.DatasetDict) else data
            else:
                data = datasets.load_dataset(path, split=options["split"])
        except Exception as error:  # the package has no common error: files, network, parsers and its own
            raise DataError(
                f"{self.where} could not be loaded ({type(error).__name__}: {error})", path=self.where
            ) from error
        self._column = options["column"]
        images = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
        if self._column not in images:
            raise DataError(
                f"{self.where} has no column {self._column!r} of images; its columns of images: "
                f"{', '.join(images) or 'none'}",
                path=self.where,
            )
        # Undecoded: every trap is then met by the code that also reads files.
        self._data = data.select_columns([self._column]).cast_column(self._column, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._data)

    def file(self, index: int) -> Path | bytes:
        """Returns the encoded image of a row, or its path."""
        entry = self._data[index][self._column]
        if entry is None:
            raise DataError(f"{self.label(index)} is empty; filter such rows out")
        return Path(entry["path"]) if entry["bytes"] is None else entry["bytes"]


class ArrayRecordSource(FileSource):
    """ArrayRecord files whose records are encoded images, JPEG or PNG for example (the `arrayrecord` extra).

    The address is one file or a pattern, such as `data/train-*.array_record`; files come in the order of their names.
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
        files = sorted(glob.glob(address))
        if not files:
            raise DataError(f"{self.where} is not a file and matches none; give a file or a pattern", path=self.where)
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
            raise StorageError(f"{self.label(index)} cannot be read ({error}); check the file, start again") from error


_SAVED_TO_DISK = ("dataset_dict.json", "state.json")  # as `datasets` names them
_OPTIONS = {"split": "train", "column": "image"}


def _parse(address: str) -> tuple[str, dict[str, str]]:
    path, *given = address.removeprefix("hf:").split(",")
    options = dict(_OPTIONS)
    for option in given:
        key, equals, value = option.partition("=")
        if key not in _OPTIONS or not equals or not value:
            raise DataError(f"{address} has the option {option!r}; known are split=NAME and column=NAME")
        options[key] = value
    return path, options
