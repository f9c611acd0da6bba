"""Reads and writes the files of `flax.serialization` (`*.msgpack`), parameter trees of diffusers' former Flax models.

The format is simple enough to do so without Flax: in the msgpack file, an array is an extension of code 1 that again
holds msgpack: its shape, the name of its dtype, and its bytes.  Arrays of more than a gibibyte are split into pieces.
"""

import math
import os
from collections.abc import Iterable, Mapping
from typing import IO, Any

import ml_dtypes  # noqa: F401 - registers bfloat16 with numpy
import msgpack
import numpy as np

from flax_vae.convert.errors import FileError
from flax_vae.convert.files import atomic_file, require_regular
from flax_vae.convert.formats.content import incomplete
from flax_vae.convert.formats.header import NAMES

_ARRAY, _SCALAR = 1, 3
_PIECES = "__msgpack_chunked_array__"
_LARGEST = 2**30  # bytes of an array in one piece, as Flax splits them


def read_msgpack(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns arrays by path, `{"encoder/conv_in/kernel": ...}`, sorted by path.

    Reads the whole file into memory; the arrays are read-only.

    Args:
      path: Path of the file.

    Raises:
      FileNotFoundError: If the file does not exist.
      FileError: If it is damaged or holds anything other than a tree of named arrays.
    """
    size = require_regular(path)
    try:
        with open(path, "rb") as file:
            # Streamed from the file, so that its bytes are in memory only once, as arrays.
            unpacker = msgpack.Unpacker(
                file, ext_hook=_unpack, object_pairs_hook=_no_name_twice, raw=False, max_buffer_size=max(size, 1)
            )
            tree = unpacker.unpack()
            if unpacker.tell() != size:
                raise ValueError(f"{size - unpacker.tell():,} bytes follow its end")
        if not isinstance(tree, dict):
            raise ValueError(f"it holds a {type(tree).__name__}; expected a tree of named arrays")
        return dict(sorted(_flatten(tree, "").items()))
    except FileError:
        raise
    except Exception as error:  # msgpack's errors have no common base
        raise FileError(incomplete(path, "msgpack", f"{type(error).__name__}: {error}")) from error


def write_msgpack(path: str | os.PathLike[str], tree: Mapping[str, Any], *, force: bool = False) -> None:
    """Writes a parameter tree as `flax.serialization.to_bytes` does, one array after another.

    Under its final name the file is either complete or as it was before.

    Args:
      path: File to write; missing folders above it are made.
      tree: Nested dictionaries of arrays; arrays that are yet to be made are made one at a time.
      force: Whether an existing file may be replaced.

    Raises:
      FileExistsError: If the file exists and `force` is False.
      OSError: If it cannot be written, for example because the disk is full.
    """
    with atomic_file(path, force=force) as temporary, temporary.open("wb") as file:
        _write(file, msgpack.Packer(use_bin_type=True, strict_types=True), tree)


def _write(file: IO[bytes], packer: msgpack.Packer, tree: Mapping[str, Any]) -> None:
    file.write(packer.pack_map_header(len(tree)))
    for name, branch in tree.items():
        file.write(packer.pack(name))
        if isinstance(branch, Mapping):
            _write(file, packer, branch)
        else:
            file.write(packer.pack(_pack(np.asarray(branch, order="C"))))


def _pack(array: np.ndarray) -> Any:
    if array.nbytes <= _LARGEST:
        return msgpack.ExtType(_ARRAY, msgpack.packb((array.shape, array.dtype.name, array.tobytes())) or b"")
    flat, count = array.reshape(-1), max(1, _LARGEST // array.itemsize)
    pieces = [_pack(flat[start : start + count]) for start in range(0, flat.size, count)]
    return {_PIECES: True, "shape": _numbered(array.shape), "chunks": _numbered(pieces)}


def _numbered(values: Iterable[Any]) -> dict[str, Any]:
    return {str(position): value for position, value in enumerate(values)}


def _unpack(code: int, data: bytes) -> Any:
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"it holds a msgpack extension of code {code}; expected an array")
    shape, name, content = msgpack.unpackb(data, raw=True)
    return _to_array(shape, name.decode(), content)


def _to_array(shape: list[int], name: str, content: bytes) -> np.ndarray:
    if name not in NAMES:
        raise ValueError(f"it holds an array of dtype {name!r}")
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"it holds an array of shape {shape}")
    expected = math.prod(shape) * np.dtype(name).itemsize
    if len(content) != expected:
        raise ValueError(f"an array of shape {shape} and dtype {name} has {len(content)} bytes, not {expected}")
    array = np.frombuffer(content, name) if content else np.empty(0, name)
    array = array.reshape(shape)
    array.flags.writeable = False
    return array


def _flatten(tree: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    leaves = {}
    for name, value in tree.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"{prefix}{name!r} is not the name of a parameter")
        if isinstance(value, dict) and _PIECES in value:
            value = _join(value)
        if isinstance(value, dict):
            leaves |= _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, np.ndarray):
            leaves[f"{prefix}{name}"] = value
        else:
            raise ValueError(f"{prefix}{name} is a {type(value).__name__}, not an array")
    return leaves


def _join(value: Mapping[str, Any]) -> np.ndarray:
    shape, pieces = (_in_order(value[name]) for name in ("shape", "chunks"))
    return np.concatenate(pieces).reshape(shape)


def _in_order(numbered: Mapping[str, Any]) -> list[Any]:
    return [numbered[str(position)] for position in range(len(numbered))]


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("it names something more than once")
    return fields
