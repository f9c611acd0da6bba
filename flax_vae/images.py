"""Opening one image file, with every way in which it can mislead either handled or refused."""

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from flax_vae.errors import DataError, MissingError

try:
    from PIL import Image, ImageOps
except ImportError as error:
    raise MissingError(f"image files are read by Pillow ({error}): pip install 'flax-vae[images]'") from error

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_REFUSED_MODES = {"I": "32-bit integers", "F": "floating-point numbers"}
_END = 4096  # bytes at each end of a file, where not all of it is read
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})  # as lasting as a damaged file, unlike a disk that fails


class StorageError(DataError):
    """An image could not be fetched, so that nothing is known of it: trying again later may well succeed."""


def list_images(folder: Path) -> list[str]:
    """Paths, relative to the folder, of all image files below it, sorted by name; hidden files are passed over."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(
        path.as_posix()
        for path in found
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.parts)
        and (folder / path).is_file()
    )


def printable(name: str | Path) -> str:
    """The name with bytes that are no UTF-8 written as escapes: the raw form cannot be printed or logged."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def image_size(file: Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Height and width as stored, from the header alone.

    Args:
      file: path of the file, or what is in it.
      name: what errors call it; None means its path.

    Raises:
      StorageError: if the file is there no longer, or the disk fails.
      DataError: if it is no image, has several frames, or is too large to be decoded safely.
    """
    name = name or _path_of(file)
    with _open(file, name) as image:
        return image.height, image.width


def file_digest(file: Path | bytes | memoryview, *, whole: bool = True) -> tuple[int, str]:
    """Returns the bytes in a file, and the SHA-256 of them, or of its ends, in hexadecimal.

    Args:
      file: path of the file, or what is in it.
      whole: read all of it, and not only the first and the last 4 KiB.

    Raises:
      StorageError: if it is there no longer, or the disk fails.
      DataError: if it may not be read.
    """
    if not isinstance(file, Path):
        parts = [file] if whole or len(file) <= 2 * _END else [file[:_END], file[-_END:]]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return len(file), digest.hexdigest()
    try:
        with open(file, "rb", buffering=0) as opened:
            if whole:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
                return opened.tell(), digest
            size = os.fstat(opened.fileno()).st_size
            parts = [opened.read(min(size, 2 * _END))] if size <= 2 * _END else [opened.read(_END)]
            if size > 2 * _END:
                opened.seek(-_END, os.SEEK_END)
                parts.append(opened.read(_END))
            return size, hashlib.sha256(b"".join(parts)).hexdigest()
    except OSError as error:
        raise _unopened(printable(file), error.errno) from error


def file_content(path: Path, name: str | None = None) -> bytes:
    """Returns what is in an image file.

    Args:
      path: Path of the file.
      name: Name of the file in errors; None means its path.

    Raises:
      StorageError: If the file is there no longer, or the disk fails.
      DataError: If it may not be read.
    """
    with _explained(name or printable(path), "cannot be read"):
        return path.read_bytes()


def read_image(file: Path | bytes, name: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """The picture a viewer would show, as 8-bit RGB.

    The EXIF orientation is applied, transparency is laid over white, 16-bit grey is scaled (Pillow's own conversion
    would clip it; of 16-bit colours it keeps the high byte), palettes, grey and CMYK are converted.  Colour profiles
    are not applied.

    Args:
      file: path of the file, or what is in it.
      name: what errors call it; None means its path.

    Raises:
      StorageError: as `image_size`.
      DataError: as `image_size`, and if the pixels are truncated or of a kind that has no agreed range.
    """
    name = name or _path_of(file)
    with _open(file, name) as image, _explained(name, "cannot be decoded"):
        image.load()
        upright = ImageOps.exif_transpose(image)
        return np.asarray(_to_rgb(upright, name))


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in _REFUSED_MODES:
        raise DataError(f"{name} holds {_REFUSED_MODES[image.mode]}, which have no agreed white; convert it to 8 bits")
    if image.mode in _SIXTEEN_BITS:
        grey = np.asarray(image).astype(np.float32) / 257.0  # 65535 / 257 = 255
        return Image.fromarray(np.round(grey).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _open(file: Path | bytes, name: str) -> Image.Image:
    """The image with only its header read, checked for what would go wrong later."""
    with _explained(name, "is no image that Pillow can read"):
        image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
        try:
            _check(image, name)
        except BaseException:
            image.close()
            raise
    return image


def _check(image: Image.Image, name: str) -> None:
    # Pillow only warns up to twice its limit, and by then a small file may ask for gigabytes.  Its warning is not made
    # an error here: the filters of warnings belong to the whole process, and other threads are opening images too.
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise _too_large(name)
    frames = getattr(image, "n_frames", 1)
    # A telephone's JPEG ("MPO") has its picture first; what follows, such as a map of depths, no viewer shows.
    if frames > 1 and image.format != "MPO":
        raise DataError(f"{name} has {frames} frames; save the one that is meant as an image of its own")


def _too_large(name: str) -> DataError:
    return DataError(f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller or cut it up first")


@contextmanager
def _explained(name: str, trouble: str) -> Iterator[None]:
    """Whatever Pillow raises, as one sentence."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large(name) from error
    except Exception as error:  # a decoder raises what it trips over: damage alone gave TypeError, struct.error, ...
        number = getattr(error, "errno", None)
        if number is None:
            raise DataError(f"{name} {trouble} ({error}); replace or remove it") from error
        raise _unopened(name, number) from error


def _unopened(name: str, number: int | None) -> DataError:
    """The error for a file that the operating system does not give."""
    reason = f"{name} cannot be opened ({os.strerror(number or 0)})"
    if number in _FORBIDDEN:
        return DataError(f"{reason}; make it readable, or remove it")
    return StorageError(f"{reason}; start again when it can")


def _path_of(file: Path | bytes) -> str:
    return "an image" if isinstance(file, bytes) else printable(file)
