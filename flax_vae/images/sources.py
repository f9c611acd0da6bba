"""Where images come from: a numbered list of them, whatever they lie in."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from flax_vae.convert.console import printable
from flax_vae.images.folder import list_folder
from flax_vae.images.read import file_digest, image_size, read_image


class ImageSource(Protocol):
    """A fixed, numbered list of images.  Threads may read at the same time.

    Attributes:
      where: its address, for messages.
      notes: a line for each kind of thing there that is no image.
    """

    where: str

    @property
    def notes(self) -> Sequence[str]: ...  # noqa: D102 - see above

    def __len__(self) -> int:
        """How many there are."""
        ...

    def name(self, index: int) -> str:
        """Of one image, unique, and fit to be printed."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width as stored, without decoding the image; `DataError` if it cannot be used."""
        ...

    def read(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """One image, as 8-bit RGB; `DataError` if it cannot be used, `StorageError` if it cannot be had now."""
        ...

    def digest(self, index: int, *, whole: bool = True) -> tuple[int, str]:
        """Bytes of one image as stored, and the SHA-256 of them or of their ends; see `flax_vae.images.file_digest`."""
        ...


def open_images(address: str) -> ImageSource:
    """The images at an address.

    Args:
      address: as `DataConfig.folder`: a folder, an `.npy` or `.npz` file, `hf:...`, one `.array_record` file or a
        pattern of them.

    Raises:
      DataError: if there is nothing of that kind, or the package that reads it is not installed.
    """
    from flax_vae.images.packed import ArrayRecordSource, ArraySource, HuggingFaceSource

    if address.startswith("hf:"):
        return HuggingFaceSource(address)
    if address.endswith((".npy", ".npz")):
        return ArraySource(Path(address))
    if ".array_record" in Path(address).name:
        return ArrayRecordSource(address)
    return FolderSource(Path(address))


class FolderSource:
    """All image files below a folder, in any mix of sizes and formats, sorted by name."""

    def __init__(self, folder: Path):
        """Lists the files.

        Raises:
          DataError: as `flax_vae.images.list_folder`.
        """
        listed = list_folder(folder)
        self.where, self.notes = printable(folder), listed.notes
        self._folder, self._files = folder, listed.images

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The path, relative to the folder."""
        return printable(self._files[index])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, from the header alone."""
        return image_size(self._folder / self._files[index])

    def read(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The picture a viewer would show."""
        return read_image(self._folder / self._files[index])

    def digest(self, index: int, *, whole: bool = True) -> tuple[int, str]:
        """Bytes in the file, and their SHA-256."""
        return file_digest(self._folder / self._files[index], whole=whole)
