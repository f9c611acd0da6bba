"""The lines of `metrics.jsonl`: written with a checksum each, and read one by one, whatever happened to the others."""

import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax_vae.train.errors import RunError

_CHECK = "crc32"  # of the line without it, in hexadecimal; a text, which no chart takes for a score
_BEGINNING = re.compile(rb'\{"step": (\d{1,18})[,}]')
_LARGEST_STEP = 2**53


class Lines(NamedTuple):
    """The content of a file.

    Attributes:
      rows: by step, one for each.
      damaged: lines that are no row as it was written, and rows whose step comes again later in the file.
      unfinished: the end of the file, where its last line was cut off while it was written; b"" otherwise.
    """

    rows: list[dict[str, Any]]
    damaged: list[bytes]
    unfinished: bytes


def to_line(row: Mapping[str, Any]) -> str:
    """Returns a row as a line; numbers that are not finite, for which JSON has no word, are left out."""
    fields = {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
    return json.dumps(fields | {_CHECK: _checksum(fields)}) + "\n"


def read_lines(path: Path) -> Lines:
    """Reads all that can be read.

    Raises:
      RunError: if the file cannot be read at all.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Lines([], [], b"")
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); move it away") from error
    *lines, unfinished = content.split(b"\n")
    rows: dict[int, tuple[dict[str, Any], bytes]] = {}
    damaged = []
    for line in (*lines, unfinished):
        text = line.strip(b"\0 \t\r")  # after a power cut a file system may leave zeros
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
    """Returns the step that a line is about which was cut off behind it."""
    beginning = _BEGINNING.match(unfinished)
    return int(beginning[1]) if beginning else None


def _to_row(line: bytes) -> dict[str, Any] | None:
    """Returns the row, or None if the line is none, or not as it was written.  Earlier versions wrote no checksum."""
    try:
        row = json.loads(line.decode("utf-8"))
        step = row["step"]
        expected = row.pop(_CHECK, None)
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < _LARGEST_STEP:
            return None
        if expected is not None and expected != _checksum(row):
            return None
        [float(value) for value in row.values() if isinstance(value, int)]  # an integer may be larger than any float
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    return row


def _checksum(fields: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(fields, sort_keys=True).encode()):08x}"
