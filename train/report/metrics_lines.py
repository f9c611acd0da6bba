"""Reads and writes the lines of `metrics.jsonl`; each has a checksum and is read independently of the others."""

import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax_vae.convert.errors import AddressError
from flax_vae.convert.files import read_at
from flax_vae.train.errors import RunError

_CHECK = "crc32"  # key of the line's checksum, in hexadecimal; a string, so that charts do not treat it as a score
_BEGINNING = re.compile(rb'\{"step": (\d{1,18})[,}]')
_LARGEST_STEP = 2**53


class Lines(NamedTuple):
    """Content of a metrics file.

    Attributes:
      rows: Rows by step, one for each.
      damaged: Lines that were changed after writing, and rows with a step that occurs again later in the file.
      unfinished: End of the file if its last line was cut off while it was written; b"" otherwise.
    """

    rows: list[dict[str, Any]]
    damaged: list[bytes]
    unfinished: bytes


def to_line(row: Mapping[str, Any]) -> str:
    """Returns a row as a line; values that are not finite are left out, because JSON cannot express them."""
    fields = {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
    return json.dumps(fields | {_CHECK: _checksum(fields)}) + "\n"


def read_lines(path: Path) -> Lines:
    """Reads all rows that can be read.

    Raises:
      RunError: If the file cannot be read at all.
    """
    try:
        content = read_at(path)
    except FileNotFoundError:
        return Lines([], [], b"")
    except AddressError:
        raise
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); move it away") from error
    *lines, unfinished = content.split(b"\n")
    rows: dict[int, tuple[dict[str, Any], bytes]] = {}
    damaged = []
    for line in (*lines, unfinished):
        text = line.strip(b"\0 \t\r")  # some file systems leave zeros after a power failure
        row = _to_row(text)
        if row is not None:
            if row["step"] in rows:
                damaged.append(rows[row["step"]][1])
            rows[row["step"]] = row, text
        elif text and line is not unfinished:
            damaged.append(text)
    left = unfinished.strip(b"\0 \t\r")
    return Lines([rows[step][0] for step in sorted(rows)], damaged, b"" if _to_row(left) else left)


def step_of(unfinished: bytes) -> int | None:
    """Returns the step of a line that was cut off after it."""
    beginning = _BEGINNING.match(unfinished)
    return int(beginning[1]) if beginning else None


def _to_row(line: bytes) -> dict[str, Any] | None:
    """Returns the row, or None if the line is invalid or was changed.  Earlier versions wrote no checksum."""
    try:
        row = json.loads(line.decode("utf-8"))
        step = row["step"]
        expected = row.pop(_CHECK, None)
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < _LARGEST_STEP:
            return None
        if expected is not None and expected != _checksum(row):
            return None
        [float(value) for value in row.values() if isinstance(value, int)]  # an integer can exceed the range of floats
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    return row


def _checksum(fields: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(fields, sort_keys=True).encode()):08x}"
