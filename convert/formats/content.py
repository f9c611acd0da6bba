"""Identifies the format of a weights file by its first bytes, independent of its name."""

import os
import re
import struct
from pathlib import Path
from typing import Literal, NamedTuple

_HEAD = 1024
_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = (b"<!doctype html", b"<html", b"<head", b"<?xml")


_NAMES = {"safetensors": "a safetensors file", "pickle": "a PyTorch checkpoint", "msgpack": "a msgpack file of Flax"}


class Content(NamedTuple):
    """Format of a file's content.

    Attributes:
      kind: Format that a reader of this package accepts; None if no reader does.
      what: Description for messages.
      remedy: How to get weights instead; may be empty.
    """

    kind: Literal["safetensors", "pickle"] | None
    what: str
    remedy: str = ""


def content_of(path: str | os.PathLike[str]) -> Content | None:
    """Returns the format that the first bytes of a file identify, or None if they identify none.

    Args:
      path: Path of the file.
    """
    try:
        if not Path(path).is_file():
            return None
        size = Path(path).stat().st_size
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:  # reported by the reader of the file
        return None
    if head.startswith(_LFS):
        number = re.search(rb"^size (\d{1,18})$", head, re.MULTILINE)
        size = f" of {int(number[1]):,} bytes" if number else ""
        return Content(
            None, f"a pointer of Git LFS to a file{size}", "run git lfs pull where it comes from, or download that file"
        )
    if head.lstrip().lower().startswith(_HTML):
        return Content(None, "a web page (HTML)", "download the file itself, not the page that shows it")
    if head.startswith(b"PK\x03\x04"):
        return Content("pickle", "a zip archive, as PyTorch writes its pickles")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return Content("pickle", "a pickle")
    if len(head) > 8 and head[8:9] == b"{" and 8 + struct.unpack("<Q", head[:8])[0] <= size:
        return Content("safetensors", "a safetensors file")
    return None


def foreign(path: str | os.PathLike[str], expected: str) -> str | None:
    """Returns the error message for a file of another format, or None if its content could be the expected one.

    Args:
      path: File to check.
      expected: Kind of `Content`, or any other description of what is expected.
    """
    found = content_of(path)
    if found is None or found.kind == expected:
        return None
    return f"{path} is {found.what}, not {_NAMES.get(expected, expected)}" + f"; {found.remedy}" * bool(found.remedy)


def incomplete(path: str | os.PathLike[str], expected: str, reason: object) -> str:
    """Returns the error message for a file that its reader rejected with `reason`; `expected` as for `foreign`."""
    name = _NAMES.get(expected, expected)
    return foreign(path, expected) or (
        f"{path} is not {name.replace('a ', 'a complete ', 1)} ({reason}); it was cut short or is of another format: "
        "copy or write it again"
    )
