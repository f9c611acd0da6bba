"""Errors that a user can fix, with one base for the whole project, and parts of their messages."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class FlaxVaeError(Exception):
    """Base of all errors that the user can fix.  Commands print the message as one line, without a traceback.

    The message names the value, what was expected, and how to fix it.

    Attributes:
      value: Value that cannot be used; None if there is none or it is not known.
      path: File or folder that it comes from, or None.
      field: Name of the argument or setting, or None.
    """

    def __init__(self, message: str = "", *, value: Any = None, path: Any = None, field: str | None = None):
        super().__init__(message)
        self.value = value
        self.path: Path | None = None if path is None else Path(path)
        self.field = field


class ArgumentError(FlaxVaeError, ValueError):
    """An argument or a setting has a value that is not allowed."""


class ConversionError(FlaxVaeError, ValueError):
    """The tensors do not fit the architecture: missing, unexpected, of a wrong shape or of another layout."""


class FileError(FlaxVaeError, ValueError):
    """A file exists, but its content is not what its name promises."""


class AddressError(FlaxVaeError, OSError):
    """A bucket, or another store with addresses, cannot be reached or refuses what was asked for."""


def suggest(name: Any, known: Iterable[Any], *, listed: bool | None = None, most: int = 1) -> str:
    """Returns the end of a message about an unknown name: the nearest known ones, or all of them.

    Of dotted names, one with an equal last part is the nearest: `lpips_weight` suggests `loss.lpips_weight`.

    Args:
      name: Unknown name.
      known: Known names; None among them, which stands for "not given", is left out.
      listed: Whether to list the known names; None lists them if none is near.
      most: Number of nearest names.
    """
    names = [str(other) for other in known if other is not None]
    last = str(name).rpartition(".")[2]
    alike = [other for other in names if other.rpartition(".")[2] == last]
    near = difflib.get_close_matches(str(name), alike or names, n=most, cutoff=0.0 if alike else 0.6)
    *others, last = [repr(other) for other in near] or [""]
    hints = [f"did you mean {' or '.join([', '.join(others), last] if others else [last])}?"] if near else []
    if listed or (listed is None and not near):
        hints.append(f"expected one of {', '.join(names)}")
    return " ".join(hints)


def shorten(items: Iterable[str], most: int = 3, *, longest: int | None = 80, separator: str = ", ") -> str:
    """Returns a list for a message: the first items, and how many follow.

    Args:
      items: Items to list.
      most: Number of items to show.
      longest: Number of characters to show of an item; None shows all.
      separator: Text between two items, a comma or a semicolon with a space.
    """
    items = list(items)
    shown = [item if longest is None or len(item) <= longest else f"{item[: longest - 3]}..." for item in items[:most]]
    more = f"{separator.rstrip(', ')} and {len(items) - most:,} more" if len(items) > most else ""
    return separator.join(shown) + more


def one_line(error: BaseException) -> str:
    """Returns the message of another package's error in one line, or the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def shorten_sentences(sentences: Iterable[str], most: int = 5) -> str:
    """Returns the first of several sentences, separated by semicolons, and how many follow."""
    return shorten(sentences, most, longest=None, separator="; ")


def shorten_lines(lines: Sequence[str], most: int) -> list[str]:
    """Returns the first lines of a long list, and one that says how many follow."""
    return [*lines[:most], f"  and {len(lines) - most:,} more"] if len(lines) > most else [*lines]
