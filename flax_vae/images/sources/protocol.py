"""The protocol of a numbered list of images, and the sources whose images are files."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flax_vae.convert.console import printable
from flax_vae.convert.files import is_address
from flax_vae.errors import DataError, UserError
from flax_vae.images.read import fetch_content, file_content, file_digest, image_size, read_image
from flax_vae.images.sizes import Crop, resize_image, resized_size


class ImageSource(Protocol):
    """A fixed, numbered list of images.  Threads may read at the same time.

    `len(source)` and `source[index]` are those of a sequence, so `grain.MapDataset.source(source)` takes one, and so
    does any loader of random access.  Every `DataError` of an image begins with its printable
    name.

    Attributes:
      where: Address of the source, for messages.
      notes: One line for each kind of thing at the address that is not an image.
      classes: Names of the classes that the labels number, if they have names.
      label_notes: Lines on the origin of the labels and on images without one; empty without labels.
    """

    where: str
    notes: Sequence[str] = ()
    classes: Sequence[str] = ()
    label_notes: Sequence[str] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of images."""

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Returns an image as a viewer shows it, in 8-bit RGB.

        Raises:
          IndexError: If the index is out of range.
          DataError: If the image cannot be used.
          StorageError: If the image cannot be fetched.
        """
        index = range(len(self))[index]
        return self.decode(index, self.content(index))

    def name(self, index: int) -> str:
        """Returns the name of an image within the source, which is unique: a path, or the number from 0.

        Args:
          index: Number of the image, from 0.
        """
        return str(index)

    def printable_name(self, index: int) -> str:
        """Returns the name of an image in messages, such as `photos.npz[12]`.

        Args:
          index: Number of the image, from 0.
        """
        return f"{Path(self.where).name}[{index}]"

    def label(self, index: int) -> int | None:
        """Returns the number of an image's class, from 0; None without one.

        Args:
          index: Number of the image, from 0.

        Raises:
          DataError: If the label is damaged.
          StorageError: If it cannot be fetched.
        """
        return None

    def caption(self, index: int) -> str | None:
        """Returns the text that describes an image; None without one.

        Args:
          index: Number of the image, from 0.

        Raises:
          DataError: If the text is damaged.
          StorageError: If it cannot be fetched.
        """
        return None

    @abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """Returns height and width of `source[index]`, from the header of the image.

        Args:
          index: Number of the image, from 0.

        Raises:
          DataError: If the image cannot be used.
          StorageError: If the image cannot be fetched.
        """

    @abstractmethod
    def content(self, index: int) -> bytes | memoryview:
        """Returns the stored bytes of an image: of an image file, or of pixels.

        Args:
          index: Number of the image, from 0.

        Raises:
          DataError: If the entry is empty.
          StorageError: If the image cannot be fetched.
        """

    @abstractmethod
    def decode(self, index: int, content: bytes | memoryview) -> UInt8[np.ndarray, "h w 3"]:
        """Returns an image from its content.

        Args:
          index: Number of the image.
          content: Content of the image, from `content`.

        Raises:
          DataError: If the content is damaged or not an image.
        """

    def digest(self, index: int, *, whole: bool = True) -> tuple[int, str]:
        """Returns the size of an image's content in bytes and its SHA-256; see `flax_vae.images.file_digest`.

        Args:
          index: Number of the image, from 0.
          whole: Whether to read the whole content; see `flax_vae.images.file_digest`.
        """
        return file_digest(self.content(index), whole=whole)


class FileSource(ImageSource):
    """A source whose images are image files, or the content of such files."""

    @abstractmethod
    def file(self, index: int) -> Path | bytes:
        """Returns the path of an image file, or its content."""

    def size(self, index: int) -> tuple[int, int]:
        """Returns height and width as a viewer shows them."""
        return image_size(self.file(index), self.printable_name(index))

    def content(self, index: int) -> bytes:
        """Returns the bytes of the image file."""
        file = self.file(index)
        return file if isinstance(file, bytes) else file_content(file, self.printable_name(index))

    def decode(self, index: int, content: bytes | memoryview) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the picture that a viewer shows."""
        return read_image(bytes(content), self.printable_name(index))

    def digest(self, index: int, *, whole: bool = True) -> tuple[int, str]:
        """Returns the bytes in the image file and their SHA-256."""
        return file_digest(self.file(index), whole=whole)


class SingleImageSource(FileSource):
    """One image file."""

    def __init__(self, place: str):
        """Stores path or address."""
        self.where, self._place = printable(place), place

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        """Returns the name of the file."""
        return self._place.replace(os.sep, "/").rpartition("/")[2]

    def printable_name(self, index: int) -> str:
        """Returns the path as it was given."""
        return self.where

    def file(self, index: int) -> Path | bytes:
        """Returns the path of the file, or the content of an object."""
        return fetch_content(self._place, self.where) if is_address(self._place) else Path(self._place)


class ImageSubset(ImageSource):
    """Some images of another source."""

    def __init__(self, source: ImageSource, indices: Sequence[int], where: str):
        """Stores which images.

        Args:
          source: Source of the images.
          indices: Numbers of the images in `source`.
          where: Address of the subset, for messages.
        """
        self._source, self._indices, self.where = source, indices, where
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self._source[self._indices[index]]

    def name(self, index: int) -> str:
        """Returns the name of an image within the other source."""
        return self._source.name(self._indices[index])

    def printable_name(self, index: int) -> str:
        """Returns the name of an image in messages of the underlying source."""
        return self._source.printable_name(self._indices[index])

    def label(self, index: int) -> int | None:
        """Returns the number of an image's class."""
        return self._source.label(self._indices[index])

    def caption(self, index: int) -> str | None:
        """Returns the text that describes an image."""
        return self._source.caption(self._indices[index])

    def size(self, index: int) -> tuple[int, int]:
        """Returns height and width."""
        return self._source.size(self._indices[index])

    def content(self, index: int) -> bytes | memoryview:
        """Returns the content in the other source."""
        return self._source.content(self._indices[index])

    def decode(self, index: int, content: bytes | memoryview) -> UInt8[np.ndarray, "h w 3"]:
        """Returns an image from its content."""
        return self._source.decode(self._indices[index], content)

    def digest(self, index: int, *, whole: bool = True) -> tuple[int, str]:
        """Returns the size of the content and its SHA-256."""
        return self._source.digest(self._indices[index], whole=whole)


class ResizedSource(ImageSubset):
    """The images of another source, resized and cropped; see `flax_vae.images.resize_image`.

    Contents and digests are those of the other source.
    """

    def __init__(self, source: ImageSource, side: int, crop: Crop = "center"):
        """Stores the settings.

        Args:
          source: Source of the images.
          side: Length of the shorter side in pixels.
          crop: `"center"` for the square in the centre, or `"none"`.

        Raises:
          UserError: If `side` is less than 1.
        """
        if side < 1:
            raise UserError(f"resize={side} must be at least 1 pixel")
        super().__init__(source, range(len(source)), source.where)
        self.notes, self.label_notes = source.notes, source.label_notes
        self._side = side
        self._crop: Crop = crop

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self._resized(index, super().__getitem__(index))

    def size(self, index: int) -> tuple[int, int]:
        """Returns height and width after resizing.

        Raises:
          DataError: If the image cannot be used, or would become too large because it is long and narrow.
        """
        return self._size_after(index, super().size(index))

    def decode(self, index: int, content: bytes | memoryview) -> UInt8[np.ndarray, "h w 3"]:
        """Returns an image from its content."""
        return self._resized(index, super().decode(index, content))

    def _size_after(self, index: int, before: tuple[int, int]) -> tuple[int, int]:
        full = resized_size(*before, self._side, "none")
        if Image.MAX_IMAGE_PIXELS is not None and full[0] * full[1] > Image.MAX_IMAGE_PIXELS:
            raise DataError(
                f"{self.printable_name(index)} is {before[0]} x {before[1]} and would be resized to {full[0]} x "
                f"{full[1]}, more than {Image.MAX_IMAGE_PIXELS:,} pixels; cut it up first, or leave it out"
            )
        return resized_size(*before, self._side, self._crop)

    def _resized(self, index: int, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        self._size_after(index, (image.shape[0], image.shape[1]))  # raises if it would be too large
        return resize_image(image, self._side, self._crop)
