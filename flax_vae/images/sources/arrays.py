"""Arrays of images in `.npy` and `.npz` files, whose headers are checked before memory is allocated."""

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import UInt8

from flax_vae.convert.console import printable
from flax_vae.convert.errors import one_line
from flax_vae.convert.files import check_members, require_regular
from flax_vae.errors import DataError
from flax_vae.images.sources.protocol import ImageSource


class ArraySource(ImageSource):
    """One array of equally large 8-bit images; an `.npy` file stays on the disk and is mapped into memory.

    An `.npz` file is read into memory; its array is `images` or `arr_0`, or else the only one.
    """

    def __init__(self, file: Path):
        """Opens the file.

        Raises:
          DataError: If the file cannot be read, or is not an array (n, h, w, 3) or (n, h, w, 1) of 8-bit integers.
        """
        self.where = printable(file)
        self._images = load_array(file)
        shape, dtype = self._images.shape, self._images.dtype
        if dtype != np.uint8:
            raise DataError(
                f"{self.where} has dtype {dtype}; expected uint8 in [0, 255]: convert the images", path=self.where
            )
        if len(shape) != 4 or shape[3] not in (1, 3):
            hint = "move the channels last" if len(shape) == 4 and shape[1] in (1, 3) else "store such an array"
            raise DataError(
                f"{self.where} has shape {shape}; expected (n, h, w, 3) or (n, h, w, 1): {hint}", path=self.where
            )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return _to_rgb(self._images[index])

    def size(self, index: int) -> tuple[int, int]:
        """Returns height and width, which all images share."""
        return self._images.shape[1], self._images.shape[2]

    def content(self, index: int) -> memoryview:
        """Returns the bytes of the pixels."""
        return np.ascontiguousarray(self._images[index]).reshape(-1).data

    def decode(self, index: int, content: bytes | memoryview) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the pixels, grey ones as three equal channels."""
        return _to_rgb(np.frombuffer(content, np.uint8).reshape(self._images.shape[1:]))


def _to_rgb(image: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(image) if image.shape[2] == 3 else np.repeat(image, 3, axis=2)


def load_array(file: Path) -> np.ndarray:
    """Returns the array of an `.npy` file as a memory map, or that of an `.npz` file in memory.

    From an `.npz` file, returns the array `images` or `arr_0`, or else the only one.

    Raises:
      DataError: If the file is missing or damaged, holds no such array, or would take far more memory than its size.
    """
    try:
        require_regular(file)
        return _load_member(file) if zipfile.is_zipfile(file) else _map(file)
    except Exception as error:  # NumPy and zipfile raise nearly anything on a damaged file
        raise DataError(
            f"{printable(file)} cannot be read as an array ({one_line(error):.300}); name an .npy or .npz file",
            path=file,
        ) from error


def _map(file: Path) -> np.ndarray:
    with file.open("rb") as stream:
        _check_header(stream, file.stat().st_size)
    return np.load(file, mmap_mode="r", allow_pickle=False)


def _load_member(file: Path) -> np.ndarray:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in check_members(archive) if member.filename.endswith(".npy")}
        name = next((name for name in ("images.npy", "arr_0.npy") if name in members), None)
        if name is None:
            if len(members) != 1:
                raise ValueError(f"of its {len(members)} arrays none is called images")
            (name,) = members
        with archive.open(name) as stream:
            _check_header(stream, members[name].file_size)
        with archive.open(name) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


def _check_header(stream: IO[bytes], size: int) -> None:
    """Compares the shape in a header with the size of the data."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"it claims the shape {shape} of {dtype}, and has {size:,} bytes")
