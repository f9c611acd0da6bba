"""Hugging Face data sets; the package that reads them is an extra, loaded when it is needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax_vae.convert.console import printable
from flax_vae.convert.errors import suggest
from flax_vae.convert.extras import needed
from flax_vae.errors import DataError
from flax_vae.images.sources.addresses import split_options
from flax_vae.images.sources.annotations import label_number
from flax_vae.images.sources.parquet import CAPTIONS, TABLE_OPTIONS
from flax_vae.images.sources.protocol import FileSource

_SAVED_TO_DISK = ("dataset_dict.json", "state.json")  # as `datasets` names them


class HuggingFaceSource(FileSource):
    """A column of images in one split of a Hugging Face data set, on the hub or on this disk (the `datasets` extra).

    The address is `hf:NAME_OR_PATH[,split=train][,column=image][,label=label][,caption=text]`.  A path may be what
    `save_to_disk` wrote, or a folder that `load_dataset` understands.  A column `label` of integers or of classes gives
    the labels, and a column `caption` or `text` the captions.
    """

    def __init__(self, address: str):
        """Loads the data set, which may download it.

        Raises:
          DataError: If the data set cannot be loaded, or has no such columns.
        """
        self.where = printable(address)
        path, options = split_options(address, ("split", *TABLE_OPTIONS))
        path, split = path.removeprefix("hf:"), options.get("split", "train")
        with needed(f"{self.where} needs the package datasets", "datasets", raises=DataError):
            import datasets  # pyright: ignore[reportMissingImports]
        try:
            if Path(path).is_dir() and any((Path(path) / name).is_file() for name in _SAVED_TO_DISK):
                data: Any = datasets.load_from_disk(path)
                data = data[split] if isinstance(data, datasets.DatasetDict) else data
            else:
                data = datasets.load_dataset(path, split=split)
        except Exception as error:  # the package has no common error: files, network, parsers and its own
            raise DataError(
                f"{self.where} could not be loaded ({type(error).__name__}: {error})", path=self.where
            ) from error
        self._column = options.get("column", "image")
        images = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
        if self._column not in images:
            raise DataError(
                f"{self.where} has no column {self._column!r} of images; its columns of images: "
                f"{', '.join(images) or 'none'}",
                path=self.where,
            )
        kinds = {name: str(getattr(feature, "dtype", "")) for name, feature in data.features.items()}
        integers = [name for name, kind in kinds.items() if kind.startswith(("int", "uint"))]
        strings = [name for name, kind in kinds.items() if kind in ("string", "large_string")]
        self._label = self._chosen("label", options.get("label"), ("label",), integers, "integers")
        self._caption = self._chosen("caption", options.get("caption"), CAPTIONS, strings, "strings")
        if self._label is not None:
            self.classes: Sequence[str] = tuple(getattr(data.features[self._label], "names", None) or ())
            self.label_notes = (f"labels are the column {printable(self._label)}",)
        # Undecoded: every trap is then met by the code that also reads files.
        self._data = data.select_columns([self._column]).cast_column(self._column, datasets.Image(decode=False))
        self._texts = data.select_columns([name for name in (self._label, self._caption) if name is not None])

    def __len__(self) -> int:
        return len(self._data)

    def file(self, index: int) -> Path | bytes:
        """Returns the encoded image of a row, or its path."""
        entry = self._data[index][self._column]
        if entry is None:
            raise DataError(f"{self.printable_name(index)} is empty; filter such rows out")
        return Path(entry["path"]) if entry["bytes"] is None else entry["bytes"]

    def label(self, index: int) -> int | None:
        """Returns the label of a row; -1, which marks unknown ones there, is none."""
        if self._label is None:
            return None
        value = self._texts[index][self._label]
        return None if value is None or value == -1 else label_number(value, self.printable_name(index))

    def caption(self, index: int) -> str | None:
        """Returns the caption of a row."""
        return None if self._caption is None else self._texts[index][self._caption]

    def _chosen(
        self, option: str, given: str | None, usual: Sequence[str], known: Sequence[str], kind: str
    ) -> str | None:
        if given is not None and given not in known:
            hint = suggest(given, known, listed=True) if known else "it has no column of that kind"
            raise DataError(f"{self.where} has no column {given!r} of {kind} for {option}=; {hint}")
        return given or next((name for name in usual if name in known), None)
