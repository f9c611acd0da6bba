"""Reads the headers of all images of a source, and collects those that cannot be used."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from flax_vae.convert.errors import shorten_sentences
from flax_vae.errors import DataError
from flax_vae.images.read import StorageError
from flax_vae.images.sources.protocol import ImageSource

_THREADS = 16  # they mostly wait
_CHUNK = 4096  # images at a time, so that millions need little memory

T = TypeVar("T")


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

    Returns:
      Sizes of the images, and the errors of those that cannot be used.

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

    Args:
      function: Function of an index; its `DataError` becomes its result.
      indices: Indices.

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

    Args:
      errors: Errors of images.

    Raises:
      StorageError: If any of the errors is one.
    """
    storage = [str(error) for error in errors if isinstance(error, StorageError)]
    if storage:
        raise StorageError(shorten_sentences(storage))
