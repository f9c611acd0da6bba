"""Escapes text for a terminal: file names may hold control characters, which a terminal would obey."""

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

# Controls of both sets, marks that reorder or hide text, separators of lines, tags, and lone surrogates, among them the
# bytes of a name that is not UTF-8.  The joiners U+200C and U+200D stay: Persian, Hindi and emoji need them.
_HIDDEN = "\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff\\ufff9-\\ufffb"
_HIDDEN += "\\ud800-\\udfff\\U000e0000-\\U000e007f"
_IN_TEXT = re.compile(f"[\\x00-\\x08{_HIDDEN}]")  # tabs and ends of lines stay
_IN_NAME = re.compile(f"[\\x00-\\x0a{_HIDDEN}]")


def printable(name: str | Path) -> str:
    """Returns a name with everything that a terminal would obey, hide or fail to print written as escapes.

    Args:
      name: Name or path.
    """
    return _IN_NAME.sub(_escape, str(name))


def escaped(text: str) -> str:
    """Escapes in a text of several lines what `printable` escapes in a name, but tabs and ends of lines."""
    return _IN_TEXT.sub(_escape, text)


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """Escapes in all that is written to both standard streams what `printable` escapes, but tabs and ends of lines.

    Messages hold names of files, and come from many places, warnings and tracebacks among them: this is where they all
    pass.  What is meant for the terminal goes around it: `rich`, which draws progress, finds the stream by itself, and
    help and misuse are written by `parse_flags`.

    Yields:
      None.
    """
    before = sys.stdout, sys.stderr
    ours: list[Any] = [_Escaped(raw_stream(stream)) for stream in before]
    sys.stdout, sys.stderr = ours
    try:
        yield
    finally:
        # Unless something else has taken a stream over meanwhile.
        sys.stdout, sys.stderr = (
            old if now is mine else now for old, now, mine in zip(before, (sys.stdout, sys.stderr), ours, strict=True)
        )


class _Escaped:
    """A text stream that escapes what it writes.  `rich` writes to `rich_proxied_file` instead, where there is one."""

    def __init__(self, stream: TextIO):
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(escaped(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def raw_stream(stream: Any) -> Any:
    """Returns the stream behind one of `escaped_output`, and any other as it is."""
    return getattr(stream, "rich_proxied_file", stream) if isinstance(stream, _Escaped) else stream


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte, as `os.fsdecode` hides it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
