"""Safetensors files as numpy arrays: bit for bit, whole or not at all, and one tensor at a time.

Reading maps the file into memory: an array is a view of it, and the disk is read when its numbers are.  Writing takes
tensor after tensor, so that a file can be converted in little more memory than it has bytes.
"""

import hashlib
import math
import mmap
import os
from collections.abc import Mapping
from typing import IO, NamedTuple, Protocol

import numpy as np

from flax_vae.convert.errors import FileError
from flax_vae.convert.files import atomic_file
from flax_vae.convert.formats.header import DIGEST, DTYPES, Header, TensorEntry, plan_header, read_header

# Bytes that are hashed and written at once.  They stay in the processor's cache between the two; and for larger writes
# Linux looks for larger runs of free memory, which can take several times as long as the copying (0.1 to 0.9 seconds
# for 335 MB).
_PIECE = 1 << 18


class ArrayLike(Protocol):
    """Anything that numpy can turn into an array and that says beforehand what the array will be."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the array."""
        ...

    def __array__(self) -> np.ndarray: ...


class TensorInfo(NamedTuple):
    """What the header of a file says of one tensor.

    Attributes:
      shape: Shape of the array.
      dtype: Name of the dtype in numpy, or in safetensors if numpy has no such dtype.
    """

    shape: tuple[int, ...]
    dtype: str


def list_tensors(path: str | os.PathLike[str]) -> dict[str, TensorInfo]:
    """Returns name to shape and dtype, sorted by name; only the header of the file is read.

    Args:
      path: Path of a safetensors file.

    Raises:
      FileNotFoundError: If there is no such file.
      FileError: If it is not a complete safetensors file.
    """
    return {name: TensorInfo(entry.shape, entry.dtype) for name, entry in read_header(path).tensors.items()}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the strings that the writer of the file left in its header.

    Args:
      path: Path of a safetensors file.

    Raises:
      FileNotFoundError: If there is no such file.
      FileError: If it is not a complete safetensors file.
    """
    return dict(read_header(path).metadata)


def read_tensors(path: str | os.PathLike[str], *, verify: bool = True) -> dict[str, np.ndarray]:
    """Returns name to array, sorted by name, every bit as it was stored.

    The arrays are read-only views of the file.  They stay what they are when the file is replaced as `write_tensors`
    does it; another program that shortens it in place while they are in use takes their memory away (SIGBUS).

    Args:
      path: the file.
      verify: whether data that come with a SHA-256 (all that `write_tensors` writes) are compared with it.  That reads
        the whole file once more, at 1 to 2 GB/s.  Files of other programs have none and are read without.

    Raises:
      FileNotFoundError: If there is no such file.
      FileError: If it is not a complete safetensors file, if its data were changed after they were written, or if
        numpy has no dtype for one of its tensors.
    """
    header = read_header(path)
    for name, entry in header.tensors.items():
        if entry.dtype not in DTYPES.values():
            raise FileError(
                f"{path}: tensor {name!r} has dtype {entry.dtype}, which numpy cannot hold; "
                f"store it as one of {', '.join(DTYPES.values())}",
                path=path,
            )
    with open(path, "rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if verify and DIGEST in header.metadata:
        _verify(path, header, content)
    return {name: _view(content, entry) for name, entry in header.tensors.items()}


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, ArrayLike],
    *,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Writes a safetensors file, every bit as it is in memory.

    Under its final name the file is either complete or as it was before.  The tensors lie in it as the safetensors
    library would order them; the metadata gain the SHA-256 of the data as `data_sha256`.

    Args:
      path: the file; missing folders above it are made.
      tensors: name to array, in any memory order.  Arrays that are yet to be made (`flax_vae.convert.formats.lazy`, or
        jax arrays on a device) are made one at a time.
      metadata: strings for the header.
      force: whether an existing file may be replaced.

    Raises:
      ConversionError: If a tensor has a name or a dtype that cannot be stored.
      FileExistsError: If the file exists and `force` is not set.
      OSError: If it cannot be written, as on a full disk.
    """
    plan = plan_header({name: (tuple(t.shape), np.dtype(t.dtype)) for name, t in tensors.items()}, metadata or {})
    with atomic_file(path, force=force) as temporary, temporary.open("wb") as file:
        file.write(plan.header)
        digest = _write_data(file, [(name, tensors[name]) for name in plan.order])
        file.seek(plan.digest_at)
        file.write(digest.encode())


def _write_data(file: IO[bytes], tensors: list[tuple[str, ArrayLike]]) -> str:
    """Returns the SHA-256 of what it wrote."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        array = _dense(np.asarray(tensor, order="C"))
        if array.shape != tuple(tensor.shape) or array.dtype.name != np.dtype(tensor.dtype).name:
            raise AssertionError(f"{name} was announced as {tensor!r} and is {array.shape}, {array.dtype}")
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _dense(array: np.ndarray) -> np.ndarray:
    """Returns the array as it lies in the file: row after row, the least significant byte of a number first."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _verify(path: str | os.PathLike[str], header: Header, content: memoryview) -> None:
    expected, found = header.metadata[DIGEST], hashlib.sha256(content[header.start :]).hexdigest()
    if found != expected:
        raise FileError(
            f"{path}: the data have SHA-256 {found}, and {expected!r} when they were written; copy the file again, or, "
            f"if another program changed the tensors on purpose, let it leave out the entry {DIGEST!r} of the metadata",
            path=path,
        )


def _view(content: memoryview, entry: TensorEntry) -> np.ndarray:
    count = math.prod(entry.shape)
    array = np.frombuffer(content, np.dtype(entry.dtype), count, entry.start) if count else np.empty(0, entry.dtype)
    array = array.reshape(entry.shape)
    array.flags.writeable = False
    return array
