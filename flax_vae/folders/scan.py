"""The images of a folder and their sizes, from their headers alone."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from flax_vae.convert.console import printable
from flax_vae.errors import DataError
from flax_vae.folders.batches import ImageEntry
from flax_vae.images import StorageError, list_folder, read_image, upright_size

_THREADS = 16  # mostly waiting
_CHUNK = 4096  # images whose headers are asked for at a time, so that millions need little memory


@dataclass(frozen=True)
class Scan:
    """What a folder holds.

    Attributes:
      folder: that was looked through.
      pictures: images whose headers are sound.
      bad: name and reason of each other one.
      notes: a line for each kind of thing in the folder that is no image.
    """

    folder: Path
    pictures: tuple[ImageEntry, ...]
    bad: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()


def scan(folder: Path) -> Scan:
    """Reads the headers of all images below a folder.

    Raises:
      DataError: if it is no folder, or holds no image.
      StorageError: if the disk fails, so that nothing is known of an image.
    """
    listed = list_folder(folder)
    listed.require_images()
    names = listed.images
    sizes: list[tuple[int, int] | DataError] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(names), _CHUNK):
            sizes += pool.map(lambda name: _size(folder, name), names[first : first + _CHUNK])
    pairs = list(zip(range(len(names)), names, sizes, strict=True))
    return Scan(
        folder,
        tuple(ImageEntry(number, name, *size) for number, name, size in pairs if not isinstance(size, DataError)),
        tuple((name, str(size)) for _, name, size in pairs if isinstance(size, DataError)),
        tuple(listed.notes),
    )


def read(file: Path | bytes, picture: ImageEntry) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image, upright.

    Args:
      file: Path of the image file, or its content.
      picture: What its header said.

    Raises:
      StorageError: as `flax_vae.images.read_image`.
      DataError: the same, and if the image has another size than its header said.
    """
    pixels = read_image(file, printable(picture.name))
    if pixels.shape[:2] != (picture.height, picture.width):
        # It was exchanged meanwhile, or is a PNG that says only behind its pixels that it is to be turned.
        raise DataError(
            f"{printable(picture.name)} is {pixels.shape[0]} x {pixels.shape[1]} pixels and was {picture.height} x "
            f"{picture.width} by its header; save it anew"
        )
    return pixels


def _size(folder: Path, name: str) -> tuple[int, int] | DataError:
    """Height and width as a viewer shows it, or why it cannot be shown."""
    try:
        return upright_size(folder / name, printable(name))
    except StorageError:
        raise
    except DataError as error:
        return error
