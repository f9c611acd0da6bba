"""Hugging Face data sets; the package that reads them is an extra, loaded when it is needed."""

from pathlib import Path
from typing import Any

from flax_vae.convert.console import printable
from flax_vae.convert.extras import needed
from flax_vae.errors import DataError
from flax_vae.images.sources.protocol import FileSource


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
            raise DataError(f"{self.printable_name(index)} is empty; filter such rows out")
        return Path(entry["path"]) if entry["bytes"] is None else entry["bytes"]


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
