"""What can be wrong with weights: the tensors themselves, or the file that should hold them."""

from collections.abc import Iterable


class ConversionError(ValueError):
    """The tensors are not those of the architecture: missing, unexpected, misshapen or of another layout."""


class FileError(ValueError):
    """A file is there, but its content is not what its name promises."""


def shorten(items: Iterable[str], most: int = 3) -> str:
    """Returns a list for a message: the first `most` items, each at most 80 characters long, and how many follow."""
    items = list(items)
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(item if len(item) <= 80 else f"{item[:77]}..." for item in items[:most]) + more
