"""Safetensors files as numpy arrays: bit for bit, whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401 - teaches numpy the name bfloat16, which reading asks for
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from convert.errors import ConversionError, FileError

# What numpy (with ml_dtypes) can hold, as safetensors and as numpy call it.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


class TensorInfo(NamedTuple):
    """What the header of a file says of one tensor.

    Attributes:
      shape: of the array.
      dtype: as numpy calls it, or as safetensors does where numpy has no such dtype.
    """

    shape: tuple[int, ...]
    dtype: str


def list_tensors(path: str | os.PathLike[str]) -> dict[str, TensorInfo]:
    """Returns name to shape and dtype, sorted by name; only the header of the file is read.

    Raises:
      FileNotFoundError: if there is no such file.
      FileError: if it is no complete safetensors file.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
        dtypes = {name: str(part.get_dtype()) for name, part in slices.items()}
        return {
            name: TensorInfo(tuple(part.get_shape()), DTYPES.get(dtypes[name], dtypes[name]))
            for name, part in slices.items()
        }


def read_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns name to array, sorted by name, every bit as it was stored.

    Raises:
      FileNotFoundError: if there is no such file.
      FileError: if it is no complete safetensors file, or if numpy has no dtype for one of its tensors.
    """
    for name, info in list_tensors(path).items():
        if info.dtype not in DTYPES.values():
            raise FileError(
                f"{path}: tensor {name!r} has dtype {info.dtype}, which numpy cannot hold; "
                f"store it as one of {', '.join(DTYPES.values())}"
            )
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Writes a safetensors file, every bit as it is in memory.

    Under its final name the file is either complete or as it was before.

    Args:
      path: the file; missing folders above it are made.
      tensors: name to array, in any memory order.
      metadata: strings for the header.
      force: whether an existing file may be replaced.

    Raises:
      ConversionError: if a tensor has a name or a dtype that cannot be stored.
      FileExistsError: if the file exists and `force` is not set.
      OSError: if it cannot be written, as on a full disk.
    """
    arrays = {name: _dense(name, array) for name, array in tensors.items()}
    with new_file(path, force=force) as temporary:
        try:
            save_file(arrays, temporary, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:  # a full disk, for one
            raise OSError(f"{path} could not be written: {error}") from error


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Gives a temporary name beside `path`; what was written there takes the final name when the block succeeds.

    When the block fails, the temporary file is removed and `path` is what it was before.

    Raises:
      FileExistsError: if `path` exists and `force` is not set.
      IsADirectoryError: if `path` is a folder.
    """
    target = Path(path).resolve()  # a link keeps pointing to where it points
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if target.exists() and not force:
        raise FileExistsError(f"{path} exists already; replace it with force=True (--force), or choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(target, "partial")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner can read; the user's umask decides
        sync_file(temporary)
        temporary.replace(target)
    except BaseException:  # an interrupt, too, leaves nothing behind
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def beside(path: Path, suffix: str) -> Path:
    """Returns a hidden name that nobody else uses, in the same folder and so on the same disk."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{suffix}")


def sync_file(path: Path) -> None:
    """Waits until the content is on the disk: a rename may otherwise survive a power cut that the content does not."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Waits until the names are on the disk, where the system can do that for folders (Windows cannot)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _dense(name: str, array: np.ndarray) -> np.ndarray:
    if name == "__metadata__":
        raise ConversionError(
            "a tensor cannot be called '__metadata__': safetensors keeps that name for itself; rename it"
        )
    # safetensors writes an array's memory from its first byte on, whatever its strides: of a transposed view it would
    # store wrong values without a word.  np.ascontiguousarray would do, but it turns a scalar into a vector.
    array = np.asarray(array, order="C")
    if array.dtype.name not in DTYPES.values():
        raise ConversionError(
            f"tensor {name!r} has dtype {array.dtype}, which a safetensors file cannot hold; "
            f"cast it to one of {', '.join(DTYPES.values())}"
        )
    return array


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[safe_open]:
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} does not exist")
    if Path(path).is_dir():
        raise FileError(f"{path} is a folder; give the name of a safetensors file")
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except SafetensorError as error:
        raise FileError(
            f"{path} is not a complete safetensors file ({error}); it was cut short or is of another format: "
            "copy or write it again"
        ) from error
