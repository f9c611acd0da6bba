"""The header of a safetensors file: eight bytes of length, then JSON with the position of each tensor.

Reading first uses the safetensors library, which strictly checks lengths, offsets, shapes and overlaps; this module
refuses what the library accepts nevertheless.  Writing is done here, because the library needs all tensors in memory.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - registers bfloat16 and the float8s with numpy
import numpy as np
from safetensors import SafetensorError, safe_open

from flax_vae.convert.errors import ConversionError, FileError, shorten
from flax_vae.convert.files import loads_object, require_regular
from flax_vae.convert.formats.content import incomplete

# Dtypes that numpy (with ml_dtypes) supports, by their safetensors names, in the order of the library's writer.  It
# sorts tensors by dtype, wide ones first, so that each starts at a multiple of its item size.
DTYPES = {
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
    "F32": "float32",
    "U32": "uint32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "U16": "uint16",
    "I16": "int16",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
NAMES = {numpy_name: name for name, numpy_name in DTYPES.items()}

METADATA = "__metadata__"  # the only name in the header that is not a tensor's
DIGEST = "data_sha256"  # metadata key of this package: SHA-256 of all bytes after the header, in hexadecimal
UNKNOWN = "0" * 64  # placeholder for the digest until the data are written
MAX_HEADER = 16_000_000  # bytes; two hundred thousand tensors, a hundred times those of a whole checkpoint
_LIBRARY_MAX = 100_000_000  # bytes; the library refuses longer headers and invalid lengths
_MAX_DIMENSIONS = 64  # numpy's limit


class TensorEntry(NamedTuple):
    """Position of one tensor in the file.

    Attributes:
      shape: Shape of the array.
      dtype: Name of the dtype in numpy, or in safetensors if numpy has no such dtype.
      start: Offset of the first byte in the file.
      stop: Offset after the last byte.
    """

    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int


class Header(NamedTuple):
    """Content of a header.

    Attributes:
      tensors: Positions by name, sorted by name.
      metadata: Strings stored by the writer of the file.
      start: Offset of the first byte of the data.
    """

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    start: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """Returns the header of a file after checking it; does not read the data.

    Raises:
      FileNotFoundError: If the file does not exist.
      FileError: If it is not a complete safetensors file, or repeats a name.
    """
    require_regular(path)
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if MAX_HEADER < length <= _LIBRARY_MAX:
                raise ValueError(f"its header takes {length:,} bytes; expected at most {MAX_HEADER:,}")
            with safe_open(path, framework="np"):  # strict checks
                pass
            fields = loads_object(file.read(length))
        for name, field in fields.items():
            if name != METADATA:
                _check_shape(name, field["shape"])
    except (SafetensorError, struct.error, ValueError) as error:
        raise FileError(incomplete(path, "safetensors", error)) from error
    start = 8 + length
    metadata = fields.pop(METADATA, None) or {}
    return Header({name: _entry(fields[name], start) for name in sorted(fields)}, metadata, start)


class Fingerprint(NamedTuple):
    """Identity of a file: cheap to read, and different for any two files written by `write_tensors`.

    Attributes:
      size: Length in bytes.
      header_sha256: SHA-256 of the bytes before the data, which include the SHA-256 of the data.
    """

    size: int
    header_sha256: str


def fingerprint(path: str | os.PathLike[str]) -> Fingerprint:
    """Returns the fingerprint of a file, whose header is hashed but not parsed.

    Args:
      path: Path of a safetensors file.

    Raises:
      FileNotFoundError: If the file does not exist.
      FileError: If it is shorter than its header.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        length = int.from_bytes(first, "little")
        header = file.read(length) if length <= min(size, MAX_HEADER) else b""
    if len(first) < 8 or len(header) < length:
        raise FileError(
            f"{path} is not a complete safetensors file (its header is cut short): copy or write it again", path=path
        )
    return Fingerprint(size, hashlib.sha256(first + header).hexdigest())


def _check_shape(name: str, shape: list[int]) -> None:
    """Checks that numpy can hold a shape; the library accepts any if one side is 0."""
    if len(shape) > _MAX_DIMENSIONS or math.prod(side for side in shape if side) > np.iinfo(np.int64).max // 8:
        sides = shorten(map(str, shape), most=8)
        raise ValueError(f"tensor {name!r} has {len(shape)} dimensions ({sides}), more than an array can have")


def _entry(field: Mapping[str, Any], start: int) -> TensorEntry:
    dtype: str = field["dtype"]
    first, last = field["data_offsets"]
    return TensorEntry(tuple(field["shape"]), DTYPES.get(dtype, dtype), start + first, start + last)


class HeaderPlan(NamedTuple):
    """Layout of a file to be written.

    Attributes:
      order: Names of the tensors, in the order of their data.
      header: Bytes before the data, with `UNKNOWN` as the digest.
      digest_at: Offset of the digest in the header.
    """

    order: list[str]
    header: bytes
    digest_at: int


def plan_header(tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]], metadata: Mapping[str, str]) -> HeaderPlan:
    """Returns the header of a file for tensors of these shapes and dtypes.

    Raises:
      ConversionError: If a name, a dtype or the metadata cannot be stored.
    """
    _check_metadata(metadata)
    for name, (_, dtype) in tensors.items():
        _check_tensor(name, dtype)
    rank = {dtype: position for position, dtype in enumerate(NAMES)}
    order = sorted(tensors, key=lambda name: (rank[tensors[name][1].name], name.encode()))
    # The digest comes first, so that its offset does not depend on other names.
    fields: dict[str, Any] = {METADATA: {DIGEST: UNKNOWN} | {key: metadata[key] for key in sorted(metadata)}}
    fields[METADATA][DIGEST] = UNKNOWN
    offset = 0
    for name in order:
        shape, dtype = tensors[name]
        end = offset + math.prod(shape) * dtype.itemsize
        fields[name] = {"dtype": NAMES[dtype.name], "shape": [int(n) for n in shape], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ConversionError(
            f"names and metadata take {len(text):,} bytes; a safetensors header holds {MAX_HEADER:,}: drop metadata"
        )
    return HeaderPlan(order, struct.pack("<Q", len(text)) + text, 8 + text.index(UNKNOWN.encode()))


def _check_metadata(metadata: Mapping[str, str]) -> None:
    for key, value in metadata.items():
        if not is_text(key) or not is_text(value):
            raise ConversionError(f"metadata {key!r}: {value!r} cannot be stored; both must be strings of valid text")


def _check_tensor(name: str, dtype: np.dtype) -> None:
    if name == METADATA:
        raise ConversionError(f"a tensor cannot be called {METADATA!r}, which safetensors reserves; rename it")
    if not is_text(name):
        raise ConversionError(f"a tensor cannot be called {name!r}: names are strings of valid text; rename it")
    if dtype.name not in NAMES:
        raise ConversionError(
            f"tensor {name!r} has dtype {dtype}, which a safetensors file cannot hold; "
            f"cast it to one of {', '.join(NAMES)}"
        )


def is_text(value: object) -> bool:
    """Returns whether a value is a string that UTF-8 can encode; files with lone surrogates cannot be opened."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False
