"""Opens the images at an address, reads the headers of all of them, and collects those that cannot be used."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from flax_vae.convert.console import printable
from flax_vae.convert.errors import shorten_sentences
from flax_vae.errors import DataError
from flax_vae.images.formats import ADDRESSES
from flax_vae.images.packed import ArrayRecordSource, ArraySource, HuggingFaceSource
from flax_vae.images.read import StorageError
from flax_vae.images.sources import FolderSource, ImageSource, SingleImageSource

_THREADS = 16  # they mostly wait
_CHUNK = 4096  # images at a time, so that millions need little memory

T = TypeVar("T")


def open_images(address: str) -> ImageSource:
    """Opens the images at an address, at least one.

    Args:
      address: Address of the images, one of
        - `FOLDER`, searched recursively; names are paths relative to it;
        - `IMAGE`, one image file;
        - `FILE.npy` or `FILE.npz`, uint8 of shape (n, h, w, 3) or (n, h, w, 1); of several arrays in an `.npz` file
          the one called `images` or `arr_0`;
        - `FILE.array_record` or a pattern of several, whose records are encoded images (the `arrayrecord` extra);
        - `hf:NAME[,split=train][,column=image]`, a Hugging Face data set, where NAME is a name on the hub, a folder
          that `save_to_disk` wrote, or one that `load_dataset` understands (the `datasets` extra).

    Raises:
      DataError: If the address holds no image, or needs a package that is not installed.
    """
    source = _open(address)
    if not len(source):
        raise DataError(
            f"{source.where} holds no image; expected at least one: give another address", path=source.where
        )
    return source


def _open(address: str) -> ImageSource:
    path = Path(address)
    if address.startswith("hf:"):
        return HuggingFaceSource(address)
    if path.is_dir():
        return FolderSource(path)
    if address.endswith((".npy", ".npz")):
        return ArraySource(path)
    if ".array_record" in path.name:
        return ArrayRecordSource(address)
    if not path.exists():
        raise DataError(f"{printable(address)} does not exist; give {ADDRESSES}")
    return SingleImageSource(path)


@dataclass(frozen=True)
class ImageScan:
    """Sizes of images, and errors of those whose headers cannot be read.

    Attributes:
      source: Source of the images.
      sizes: Height and width of each image whose header can be read, by its number.
      errors: Error of each other image, by its number.
    """

    source: ImageSource
    sizes: dict[int, tuple[int, int]]
    errors: dict[int, DataError]

    @property
    def reasons(self) -> list[str]:
        """Error message of each image whose header cannot be read."""
        return [str(error) for error in self.errors.values()]

    @cached_property
    def positions(self) -> dict[str, int]:
        """Number of each image by its name."""
        return {self.source.name(index): index for index in sorted((*self.sizes, *self.errors))}

    def require_sound(self) -> None:
        """Refuses images whose headers cannot be read, all in one message.

        Raises:
          DataError: If the header of any image cannot be read.
        """
        if self.errors:
            raise DataError(shorten_sentences(self.reasons))


def scan_images(source: ImageSource, indices: Iterable[int] | None = None) -> ImageScan:
    """Reads the headers of images, in several threads.

    Args:
      source: Source of the images.
      indices: Numbers of the images; None means all.

    Raises:
      StorageError: If images cannot be fetched, for example because the disk fails.
    """
    found = ImageScan(source, {}, {})
    for index, size in in_threads(source.size, range(len(source)) if indices is None else indices):
        if isinstance(size, DataError):
            found.errors[index] = size
        else:
            found.sizes[index] = size
    require_storage(found.errors.values())
    return found


def in_threads(function: Callable[[int], T], indices: Iterable[int]) -> Iterator[tuple[int, T | DataError]]:
    """Applies a function to each index in several threads.

    Yields:
      Each index, in order, with the result or the `DataError` that was raised.
    """

    def attempt(index: int) -> T | DataError:
        try:
            return function(index)
        except DataError as error:
            return error

    indices = iter(indices)
    with ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(itertools.islice(indices, _CHUNK)):
            yield from zip(chunk, pool.map(attempt, chunk), strict=True)


def require_storage(errors: Iterable[DataError]) -> None:
    """Raises one error for all images that could not be fetched.

    Raises:
      StorageError: If any of the errors is one.
    """
    storage = [str(error) for error in errors if isinstance(error, StorageError)]
    if storage:
        raise StorageError(shorten_sentences(storage))
