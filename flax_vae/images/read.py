"""Opening one image file, with every way in which it can mislead either handled or refused."""

import errno
import hashlib
import importlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from flax_vae.convert.architecture import Architecture
from flax_vae.convert.console import printable as printable
from flax_vae.convert.errors import FileError, one_line
from flax_vae.convert.files import read_at
from flax_vae.errors import DataError
from flax_vae.images.colour import in_srgb
from flax_vae.images.formats import READ, what_is
from flax_vae.images.sizes import to_float

_SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_REFUSED_MODES = {"I": "32-bit integers", "F": "floating-point numbers"}
_END = 4096  # bytes read at each end of a file for a quick digest
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})  # permanent, like a damaged file and unlike a failing disk


_ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_MOST_BYTES = 1 << 30  # bytes of a file; an uncompressed one with the maximum of pixels in 16 bits has 0.7 GB
_MOST_AT_ONCE = 1 << 28  # bytes of a file that its decoder reads at once, as for AVIF and WebP
_MOST_SCANS = 200  # scans of a progressive JPEG, each as expensive as a whole image; cameras write about ten
_LARGE_TILE = 1 << 24  # pixels of a tile of a TIFF, if the image has fewer
_HEAD = 64  # bytes that identify a format that is not read


class StorageError(DataError):
    """An image could not be fetched; a later attempt may succeed."""


def image_size(file: Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Returns the upright height and width from the header of an image.

    Args:
      file: Path of the file, or its content.
      name: Name of the file in errors; None means its path.

    Raises:
      StorageError: If the file is gone, or the disk fails.
      DataError: If the file is not an image, has several frames, or is too large to be decoded safely.
    """
    with _opened(file, name or _path_of(file)) as image:
        return (image.width, image.height) if _is_rotated(image) else (image.height, image.width)


def file_digest(file: Path | bytes | memoryview, *, whole: bool = True) -> tuple[int, str]:
    """Returns size and SHA-256 of a file, or the SHA-256 of both ends, in hexadecimal.

    Args:
      file: Path of the file, or its content.
      whole: Whether to read the whole file instead of the first and the last 4 KiB.

    Raises:
      StorageError: If the file is gone, or the disk fails.
      DataError: If it may not be read.
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


def file_content(path: Path, name: str | None = None, *, most: int = _MOST_BYTES) -> bytes:
    """Returns the content of an image file, or of a file beside it.

    Args:
      path: Path of the file.
      name: Name of the file in errors; None means its path.
      most: Maximum size in bytes.

    Raises:
      StorageError: If the file is gone, or the disk fails.
      DataError: If it may not be read, is not a regular file, or has too many bytes.
    """
    name = name or printable(path)
    with _explained(name, "cannot be read"), closing(_stream(path, name, most)) as stream:
        return stream.content()


def fetch_content(place: str, name: str, start: int = 0, stop: int | None = None) -> bytes:
    """Returns the bytes from `start` to `stop` of a file, or of an object in a bucket.

    Args:
      place: Path or address.
      name: Name of the file in errors.
      start: Position of the first byte.
      stop: Position after the last byte; None means the end.

    Raises:
      StorageError: If it cannot be fetched.
    """
    try:
        return read_at(place, start, stop)
    except OSError as error:
        raise StorageError(f"{name} cannot be read ({one_line(error)}); start again when it can") from error


def read_image(file: Path | bytes, name: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image as a viewer shows it, in 8-bit RGB.

    Applies the EXIF orientation and the embedded colour profile, composites transparency over white, scales 16-bit grey
    (Pillow's conversion would clip it; of 16-bit colours it keeps the high byte), and converts palettes, grey and CMYK.

    Args:
      file: Path of the file, or its content.
      name: Name of the file in errors; None means its path.

    Raises:
      StorageError: As in `image_size`.
      DataError: As in `image_size`, or if the pixels are truncated or have a type without a standard range.
    """
    name = name or _path_of(file)
    with _opened(file, name, whole=True) as image, _explained(name, "cannot be decoded"):
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_to_rgb(image, name))


def read_model_input(path: Path, params: Architecture) -> Float[np.ndarray, "1 h w c"]:
    """Returns an image in [-1, 1] for a model, cropped to multiples of its factor.

    Args:
      path: Path of the file.
      params: Architecture of the model; with one channel, the image is converted to grey.

    Raises:
      FileError: If the image cannot be read, is too small for the model, or has other channels.
    """
    try:
        image = Image.fromarray(read_image(path))
    except DataError as error:
        raise FileError(str(error)) from error
    pixels = to_float(np.asarray(image.convert("L") if params.in_channels == 1 else image))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width = (side // params.factor * params.factor for side in pixels.shape[:2])
    if min(height, width) < params.least_image or pixels.shape[2] != params.in_channels:
        raise FileError(
            f"{printable(path)} is {pixels.shape[0]} x {pixels.shape[1]} x {pixels.shape[2]}; the model takes "
            f"{params.in_channels} channels and sides of at least {params.least_image}"
        )
    return pixels[None, :height, :width]


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in _REFUSED_MODES:
        raise DataError(
            f"{name} holds {_REFUSED_MODES[image.mode]}, which have no standard range; convert it to 8 bits"
        )
    if image.mode in _SIXTEEN_BITS:
        scaled = np.asarray(image).astype(np.float32) / 257.0  # 65535 / 257 = 255
        grey = Image.fromarray(np.round(scaled).astype(np.uint8))
        grey.info["icc_profile"] = image.info.get("icc_profile")
        image = grey
    image = in_srgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _opened(file: Path | bytes, name: str, *, whole: bool = False) -> Iterator[Image.Image]:
    """Opens an image, reads its header and checks it.

    Args:
      file: Path of the file, or its content.
      name: Name of the file in errors.
      whole: Whether the caller will read the pixels too.
    """
    with _explained(name, "is damaged"), closing(_stream(file, name)) as stream:
        try:
            # By content instead of name; only TGA files have no signature.
            tga = name.lower().endswith(READ["TGA"])
            image = Image.open(stream, formats=_FORMATS if tga else _KNOWN_BY_CONTENT)  # pyright: ignore[reportArgumentType]
        except UnidentifiedImageError as error:
            raise _unknown(stream, name) from error
        with image:
            _check(image, name)
            if whole:
                _check_scans(image, stream, name)
                stream.metered = image.format != "BMP"  # Pillow reads runs of BMP byte by byte
            yield image


def _stream(file: Path | bytes, name: str, most: int = _MOST_BYTES) -> "_Metered":
    """Opens a regular file, or bytes, as a stream."""
    if isinstance(file, bytes):
        size, raw = len(file), io.BytesIO(file)
    else:
        status = os.stat(file)  # before opening, which would wait for a writer of a pipe
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise DataError(f"{name} is {kind}; give an image file")
        size = status.st_size
        raw = open(file, "rb")  # noqa: SIM115 - the caller closes it
    if size > most:
        raw.close()
        raise DataError(f"{name} has {size:,} bytes, more than {most:,}; make it smaller or cut it up first")
    return _Metered(raw, size, name)


class _Metered:
    """A file that limits the number of reads.

    Pillow reads chunks, markers, extensions and pages one by one, so a small file with many empty ones would keep it
    busy for minutes.  In real images they have at least some hundred bytes.

    Attributes:
      metered: Whether reads are counted.
    """

    def __init__(self, raw: BinaryIO, size: int, name: str):
        self.metered = True
        self._raw, self._size, self._name = raw, size, name
        self._left = 20_000 + size // 64

    def read(self, size: int | None = -1) -> bytes:
        self._left -= self.metered
        if self._left < 0:
            raise DataError(f"{self._name} has too many parts for an image; save it again, or remove it")
        if (size is None or size < 0 or size > _MOST_AT_ONCE) and self._size > _MOST_AT_ONCE:
            raise DataError(
                f"{self._name} has {self._size:,} bytes, more than {_MOST_AT_ONCE:,}, the limit of its format; "
                "make it smaller"
            )
        return self._raw.read(-1 if size is None else size)

    def close(self) -> None:
        self._raw.close()

    def content(self) -> bytes:
        """Returns the whole file, without limits."""
        self._raw.seek(0)
        return self._raw.read()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _unknown(stream: _Metered, name: str) -> DataError:
    """Returns the error about a file of a format that is not read."""
    stream.seek(0)
    known = what_is(stream.read(_HEAD))
    if known is None:
        return DataError(f"{name} is not an image that Pillow can read; replace or remove it")
    return DataError(f"{name} is not an image that Pillow can read: it is {known[0]}; {known[1]}")


def _check(image: Image.Image, name: str) -> None:
    # Up to twice its limit Pillow only warns, although a small file may already need gigabytes.  Turning the warning
    # into an error would change the filters of the whole process, in which other threads open images too.
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise _too_large(name)
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        tile = [tags.get(tag, 0) for tag in (ExifTags.Base.TileWidth, ExifTags.Base.TileLength)]
        if not all(isinstance(side, int) for side in tile) or tile[0] * tile[1] > max(
            _LARGE_TILE, image.width * image.height
        ):
            raise DataError(f"{name} has tiles of {tile[0]} x {tile[1]} pixels; save it again, without tiles")
    # `is_animated` does not count the frames, which is slow for some formats.  A phone's JPEG ("MPO") holds the image
    # first, and then data that viewers do not show, such as a depth map.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise DataError(f"{name} has several frames or pages; save one of them as an image")


def _check_scans(image: Image.Image, stream: _Metered, name: str) -> None:
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        stream.seek(0)
        if stream.read().count(b"\xff\xda") > _MOST_SCANS:
            raise DataError(f"{name} is a JPEG of more than {_MOST_SCANS} scans; save it again, or remove it")


def _is_rotated(image: Image.Image) -> bool:
    """Returns whether a viewer exchanges height and width."""
    if image.format == "TIFF":  # Pillow returns their upright size
        return False
    try:
        # The method of PNG images would decode all pixels to read metadata after them.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in _ROTATED
    except Exception:  # damaged metadata; reading the pixels reports it
        return False


def _available() -> tuple[str, ...]:
    """Returns the formats of `READ` that this Pillow supports."""
    for plugin in _PLUGINS:
        with suppress(ImportError):
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
    return tuple(name for name in READ if name in Image.OPEN)


_PLUGINS = ("Avif", "Bmp", "Gif", "Jpeg", "Jpeg2K", "Mpo", "Png", "Ppm", "Tga", "Tiff", "WebP")
_FORMATS = _available()
_KNOWN_BY_CONTENT = tuple(name for name in _FORMATS if name != "TGA")


def _too_large(name: str) -> DataError:
    return DataError(f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller or cut it up first")


@contextmanager
def _explained(name: str, trouble: str) -> Iterator[None]:
    """Converts exceptions of Pillow to one sentence."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large(name) from error
    except Exception as error:  # on damaged files decoders raise TypeError, struct.error and others
        number = getattr(error, "errno", None)
        if number is None:
            raise DataError(f"{name} {trouble} ({error}); replace or remove it") from error
        raise _unopened(name, number) from error


def _unopened(name: str, number: int | None) -> DataError:
    """Returns the error about a file that cannot be opened."""
    reason = f"{name} cannot be opened ({os.strerror(number or 0)})"
    if number in _FORBIDDEN:
        return DataError(f"{reason}; make it readable, or remove it")
    return StorageError(f"{reason}; start again when it can")


def _path_of(file: Path | bytes) -> str:
    return "an image" if isinstance(file, bytes) else printable(file)
