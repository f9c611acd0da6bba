"""What can be wrong with weights: the tensors themselves, or the file that should hold them."""

from collections.abc import Iterable, Sequence


class ConversionError(ValueError):
    """The tensors are not those of the architecture: missing, unexpected, misshapen or of another layout."""


class FileError(ValueError):
    """A file is there, but its content is not what its name promises."""


def shorten(items: Iterable[str], most: int = 3, *, longest: int | None = 80, separator: str = ", ") -> str:
    """Returns a list for a message: the first items, and how many follow.

    Args:
      items: what is listed.
      most: items that are shown.
      longest: characters of an item, the rest of which is cut off; None cuts nothing.
      separator: what stands between two items, a comma or a semicolon.
    """
    items = list(items)
    shown = [item if longest is None or len(item) <= longest else f"{item[: longest - 3]}..." for item in items[:most]]
    more = f"{separator.rstrip(', ')} and {len(items) - most:,} more" if len(items) > most else ""
    return separator.join(shown) + more


def first_lines(lines: Sequence[str], most: int) -> list[str]:
    """Returns the first lines of a long list, and one that says how many follow."""
    return [*lines[:most], f"  and {len(lines) - most:,} more"] if len(lines) > most else [*lines]
