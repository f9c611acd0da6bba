"""The images of a folder and their sizes, from their headers alone."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from flax_vae.at_scale.buckets import Picture
from flax_vae.errors import DataError, UserError
from flax_vae.images import StorageError, image_size, list_images, printable, read_image

_THREADS = 16  # mostly waiting
_CHUNK = 4096  # images whose headers are asked for at a time, so that millions need little memory
_LYING = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


@dataclass(frozen=True)
class Scan:
    """What a folder holds.

    Attributes:
      folder: that was looked through.
      pictures: images whose headers are sound.
      bad: name and reason of each other one.
    """

    folder: Path
    pictures: tuple[Picture, ...]
    bad: tuple[tuple[str, str], ...]


def scan(folder: Path) -> Scan:
    """Reads the headers of all images below a folder.

    Raises:
      UserError: if it is no folder, or holds no image.
      StorageError: if the disk fails, so that nothing is known of an image.
    """
    if not folder.is_dir():
        raise UserError(f"{printable(folder)} is no folder; give one with images in it")
    names = list_images(folder)
    if not names:
        raise UserError(f"{printable(folder)} holds no image file; give a folder with images in it or below it")
    sizes: list[tuple[int, int] | DataError] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for first in range(0, len(names), _CHUNK):
            sizes += pool.map(lambda name: _size(folder, name), names[first : first + _CHUNK])
    pairs = list(zip(range(len(names)), names, sizes, strict=True))
    return Scan(
        folder,
        tuple(Picture(number, name, *size) for number, name, size in pairs if not isinstance(size, DataError)),
        tuple((name, str(size)) for _, name, size in pairs if isinstance(size, DataError)),
    )


def read(file: Path | bytes, picture: Picture) -> UInt8[np.ndarray, "h w 3"]:
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
        height, width = image_size(folder / name, printable(name))
        return (width, height) if _lies(folder / name) else (height, width)
    except StorageError:
        raise
    except DataError as error:
        return error


def _lies(path: Path) -> bool:
    """Whether the picture is stored on its side."""
    try:
        with Image.open(path) as image:
            if image.format == "TIFF":  # Pillow gives the upright size of these
                return False
            # Not the PNG's own method, which would decode all pixels in order to look behind them.
            return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in _LYING
    except Exception:  # damaged notes: what comes of them is seen when the pixels are read
        return False
