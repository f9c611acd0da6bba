"""Reads the array of images in an `.npy` or `.npz` file; checks its header before allocating memory."""

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from flax_vae.convert.console import printable
from flax_vae.convert.files import check_members, require_regular
from flax_vae.errors import DataError


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
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{printable(file)} cannot be read as an array ({reason:.300}); name an .npy or .npz file", path=file
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
