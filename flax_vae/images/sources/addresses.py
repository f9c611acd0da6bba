"""The grammar of addresses of images: options after commas, braces and wildcards."""

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from flax_vae.convert.console import printable
from flax_vae.convert.errors import FileError, suggest
from flax_vae.convert.files import address_below, exists_at, is_address, list_at, local_copy
from flax_vae.errors import DataError
from flax_vae.images.read import StorageError

_MOST_FILES = 1_000_000  # that braces may stand for
_OPTIONS = re.compile(r"(?P<place>.*?)(?P<options>(,\w+=[^,=/]*)*)", re.DOTALL)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?[]")


def split_options(address: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Splits `PLACE,option=value,...` into the place and its options.

    Args:
      address: The address.
      known: Names of the options of such an address.

    Raises:
      DataError: If an option is unknown, repeated, or has no value.
    """
    match = _OPTIONS.fullmatch(address)
    assert match is not None  # the pattern matches any text
    place, loose = match["place"], ""
    if address.startswith("hf:"):  # a name without braces, so that any comma begins an option
        place, _, loose = place.partition(",")
    options: dict[str, str] = {}
    for option in filter(None, f"{loose}{match['options']}".split(",")):
        key, _, value = option.partition("=")
        if key not in known:
            hint = suggest(key, known, listed=True) if known else "such an address has no options"
            raise DataError(f"{printable(address)} has the option {printable(option)!r}; {hint}")
        if not value or key in options:
            raise DataError(f"{printable(address)} has the option {printable(option)!r}; give {key}=VALUE once")
        options[key] = value
    return place, options


def without_options(address: str) -> str:
    """Returns the place that an address names, without checking its options."""
    match = _OPTIONS.fullmatch(address)
    return match["place"] if match else address


def files_at(place: str) -> list[str]:
    """Returns the addresses of the files that a place stands for, in order.

    Braces come first: `{000..099}` counts, with leading zeros as written, and `{a,b}` lists.  Each of the results is a
    file, or a pattern of `*`, `?` and `[...]`, whose files are sorted by name.  In a bucket, a pattern is in the last
    part of the address.

    Raises:
      DataError: If a pattern matches no file, or braces are of another form.
    """
    if exists_at(place):
        return [place]
    found: list[str] = []
    for name in _in_braces(place):
        if not _WILD.search(name):
            found.append(name)
            continue
        files = _matching(name)
        if not files:
            raise DataError(f"{printable(name)} is not a file and matches none; give a file or a pattern")
        found += files
    repeated = next((name for name, again in itertools.pairwise(sorted(found)) if name == again), None)
    if repeated is not None:
        raise DataError(f"{printable(place)} names {printable(repeated)} twice; name each file once")
    return found


def _matching(pattern: str) -> list[str]:
    if not is_address(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    folder, _, name = pattern.rpartition("/")
    if _WILD.search(folder):
        raise DataError(f"{printable(pattern)} has a wildcard in a folder; in a bucket, use it in the last part only")
    return [
        address_below(folder, entry.name)
        for entry in list_at(folder)
        if not entry.folder and fnmatch.fnmatchcase(entry.name, name)
    ]


def _in_braces(place: str) -> list[str]:
    names = [place]
    while match := _BRACES.search(names[0]):
        choices = _choices(match[1], place)
        names = [_BRACES.sub(lambda _, choice=choice: choice, name, count=1) for name in names for choice in choices]
        if len(names) > _MOST_FILES:
            raise DataError(f"{printable(place)} names more than {_MOST_FILES:,} files; use several addresses")
    return names


def _choices(inside: str, place: str) -> list[str]:
    if counted := _RANGE.fullmatch(inside):
        first, last = counted.groups()
        if int(first) <= int(last) and int(last) - int(first) < _MOST_FILES:
            width = len(first) if first.startswith("0") else 0
            return [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]
    elif "," in inside:
        return inside.split(",")
    raise DataError(
        f"{printable(place)} has {{{printable(inside)}}}; expected a range such as {{000..099}} or a list such "
        "as {a,b}"
    )


def copied(place: str) -> Path:
    """Returns the path of a file, or that of a copy of an object in a bucket.

    Raises:
      DataError: If there is no such object.
      StorageError: If it cannot be fetched.
    """
    try:
        return local_copy(place)
    except (FileNotFoundError, FileError) as error:
        raise DataError(f"{printable(place)} cannot be read ({error}); give the address of an object") from error
    except OSError as error:
        raise StorageError(f"{printable(place)} cannot be fetched ({error}); start again when it can") from error


def file_name(place: str) -> str:
    """Returns the last part of an address."""
    return place.replace(os.sep, "/").rpartition("/")[2]
