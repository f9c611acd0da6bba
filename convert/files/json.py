"""JSON that means one thing: no name twice in an object, no NaN; read from a regular file of bounded size."""

import json
import math
import os
from collections import Counter
from typing import Any

from flax_vae.convert.errors import shorten
from flax_vae.convert.files.regular import read_bytes


def loads_object(data: bytes) -> dict[str, Any]:
    """Returns the object of named fields that UTF-8 text holds.

    Python's reader, and that of safetensors, silently let the last of two equal names win: what a reader sees in
    the file is then not what a program reads.

    Args:
      data: Text in UTF-8.

    Raises:
      ValueError: if the text is not JSON, not an object, repeats a name within one, or is nested without end.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_name_twice, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, an object of named fields was expected")
    return value


def finite_json(value: Any) -> Any:
    """Returns a value for JSON with null in place of numbers that are not finite, which JSON cannot hold.

    Args:
      value: Numbers, texts, lists and dictionaries.
    """
    if isinstance(value, dict):
        return {name: finite_json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_object(path: str | os.PathLike[str], limit: int = 1 << 24) -> dict[str, Any]:
    """Returns the object of named fields that a file holds.

    Args:
      path: The file.
      limit: Largest size in bytes that is read.

    Raises:
      FileNotFoundError: If there is no such file.
      FileError: If it is not a regular file, or is larger than `limit`.
      ValueError: See `loads_object`.
    """
    return loads_object(read_bytes(path, limit))


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        repeated = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"it names {shorten(map(repr, repeated))} more than once")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
