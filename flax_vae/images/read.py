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

from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.convert.console import printable as printable
from flax_vae.convert.errors import FileError
from flax_vae.errors import DataError
from flax_vae.images.colour import in_srgb
from flax_vae.images.formats import READ, what_is
from flax_vae.images.sizes import to_float

_SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_REFUSED_MODES = {"I": "32-bit integers", "F": "floating-point numbers"}
_END = 4096  # bytes at each end of a file, where not all of it is read
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})  # as lasting as a damaged file, unlike a disk that fails


_ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_MOST_BYTES = 1 << 30  # of a file: an uncompressed one of the most pixels and 16 bits takes 0.7 GB
_MOST_AT_ONCE = 1 << 28  # of a file that its decoder takes whole into memory, as those of AVIF and WebP do
_MOST_SCANS = 200  # of a progressive JPEG, each of which is decoded over all of it; cameras write about ten
_LARGE_TILE = 1 << 24  # pixels of a tile of a TIFF, where the image itself has fewer
_HEAD = 64  # bytes by which a file is told that is not read


class StorageError(DataError):
    """An image could not be fetched, so that nothing is known of it: trying again later may well succeed."""


def image_size(file: Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Returns height and width as a viewer shows them, from the header alone.

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
    """Returns the bytes in a file, and the SHA-256 of them, or of its ends, in hexadecimal.

    Args:
      file: Path of the file, or its content.
      whole: Whether to read all of it instead of the first and the last 4 KiB.

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


def file_content(path: Path, name: str | None = None) -> bytes:
    """Returns what is in an image file.

    Args:
      path: Path of the file.
      name: Name of the file in errors; None means its path.

    Raises:
      StorageError: If the file is there no longer, or the disk fails.
      DataError: If it may not be read, is no regular file, or has too many bytes.
    """
    name = name or printable(path)
    with _explained(name, "cannot be read"), closing(_stream(path, name)) as stream:
        return stream.content()


def read_image(file: Path | bytes, name: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """The picture a viewer would show, as 8-bit RGB.

    The EXIF orientation and the embedded colour profile are applied, transparency is laid over white, 16-bit grey is
    scaled (Pillow's own conversion would clip it; of 16-bit colours it keeps the high byte), palettes, grey and CMYK
    are converted.

    Args:
      file: Path of the file, or its content.
      name: Name of the file in errors; None means its path.

    Raises:
      StorageError: As `image_size`.
      DataError: As `image_size`, and if the pixels are truncated or of a kind that has no agreed range.
    """
    name = name or _path_of(file)
    with _opened(file, name, whole=True) as image, _explained(name, "cannot be decoded"):
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_to_rgb(image, name))


def read_model_input(path: Path, params: AutoEncoderParams) -> Float[np.ndarray, "1 h w c"]:
    """Returns an image as a model takes it: in [-1, 1], without the last rows and columns that fill no whole latent.

    Args:
      path: Path of the file.
      params: Architecture of the model; with one channel, the image is converted to grey.

    Raises:
      FileError: If the image cannot be read, is smaller than the model's factor, or has other channels.
    """
    try:
        image = Image.fromarray(read_image(path))
    except DataError as error:
        raise FileError(str(error)) from error
    pixels = to_float(np.asarray(image.convert("L") if params.in_channels == 1 else image))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    height, width = (side // params.factor * params.factor for side in pixels.shape[:2])
    if not height or not width or pixels.shape[2] != params.in_channels:
        raise FileError(
            f"{printable(path)} is {pixels.shape[0]} x {pixels.shape[1]} x {pixels.shape[2]}; the model takes "
            f"{params.in_channels} channels and sides of at least {params.factor}"
        )
    return pixels[None, :height, :width]


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode in _REFUSED_MODES:
        raise DataError(f"{name} holds {_REFUSED_MODES[image.mode]}, which have no agreed white; convert it to 8 bits")
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
    """The image with only its header read, checked for what would go wrong later.

    Args:
      file: Path of the file, or its content.
      name: Name of the file in errors.
      whole: Whether the pixels are to be read too.
    """
    with _explained(name, "is damaged"), closing(_stream(file, name)) as stream:
        try:
            # By content, whatever it is called; only files of Truevision have nothing to be known by.
            tga = name.lower().endswith(READ["TGA"])
            image = Image.open(stream, formats=_FORMATS if tga else _KNOWN_BY_CONTENT)  # pyright: ignore[reportArgumentType]
        except UnidentifiedImageError as error:
            raise _unknown(stream, name) from error
        with image:
            _check(image, name)
            if whole:
                _check_scans(image, stream, name)
                stream.metered = image.format != "BMP"  # whose runs Pillow reads byte by byte
            yield image


def _stream(file: Path | bytes, name: str) -> "_Metered":
    """The content of a regular file, or of bytes."""
    if isinstance(file, bytes):
        size, raw = len(file), io.BytesIO(file)
    else:
        status = os.stat(file)  # before it is opened: that alone waits for whoever writes into a pipe
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file but a pipe or a device"
            raise DataError(f"{name} is {kind}; give an image file")
        size = status.st_size
        raw = open(file, "rb")  # noqa: SIM115 - the caller closes it
    if size > _MOST_BYTES:
        raw.close()
        raise DataError(f"{name} has {size:,} bytes, more than {_MOST_BYTES:,}; make it smaller or cut it up first")
    return _Metered(raw, size, name)


class _Metered:
    """A file that ends what asks for it in more pieces than an image has.

    Pillow walks through chunks, markers, extensions and pages one by one, so a small file of empty ones keeps it busy
    for minutes.  Those of real images have some hundred bytes and more.

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
            raise DataError(f"{self._name} is cut into too many pieces for an image; save it anew, or remove it")
        if (size is None or size < 0 or size > _MOST_AT_ONCE) and self._size > _MOST_AT_ONCE:
            raise DataError(
                f"{self._name} has {self._size:,} bytes, more than the {_MOST_AT_ONCE:,} that its format is read with; "
                "make it smaller"
            )
        return self._raw.read(-1 if size is None else size)

    def close(self) -> None:
        self._raw.close()

    def content(self) -> bytes:
        """All of it, whatever the limits."""
        self._raw.seek(0)
        return self._raw.read()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def _unknown(stream: _Metered, name: str) -> DataError:
    """What to say of a file of no format that is read."""
    stream.seek(0)
    known = what_is(stream.read(_HEAD))
    if known is None:
        return DataError(f"{name} is no image that Pillow can read, damaged or of another format; replace or remove it")
    return DataError(f"{name} is no image that Pillow can read: it is {known[0]}; {known[1]}")


def _check(image: Image.Image, name: str) -> None:
    # Pillow only warns up to twice its limit, and by then a small file may ask for gigabytes.  Its warning is not made
    # an error here: the filters of warnings belong to the whole process, and other threads are opening images too.
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise _too_large(name)
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        tile = [tags.get(tag, 0) for tag in (ExifTags.Base.TileWidth, ExifTags.Base.TileLength)]
        if not all(isinstance(side, int) for side in tile) or tile[0] * tile[1] > max(
            _LARGE_TILE, image.width * image.height
        ):
            raise DataError(f"{name} has tiles of {tile[0]} x {tile[1]} pixels; save it anew, without tiles")
    # Whether there is a second one, not how many: of some formats they would all be walked through.  A telephone's JPEG
    # ("MPO") has its picture first; what follows, such as a map of depths, no viewer shows.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise DataError(f"{name} has several frames or pages; save the one that is meant as an image of its own")


def _check_scans(image: Image.Image, stream: _Metered, name: str) -> None:
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        stream.seek(0)
        if stream.read().count(b"\xff\xda") > _MOST_SCANS:
            raise DataError(f"{name} is a JPEG of more than {_MOST_SCANS} scans; save it anew, or remove it")


def _is_rotated(image: Image.Image) -> bool:
    """Returns whether a viewer exchanges height and width."""
    if image.format == "TIFF":  # Pillow gives the upright size of these
        return False
    try:
        # Not the PNG's own method, which would decode all pixels in order to look behind them.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in _ROTATED
    except Exception:  # damaged notes: what comes of them is seen when the pixels are read
        return False


def _available() -> tuple[str, ...]:
    """The formats of `READ` that this Pillow has."""
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
