"""Computes digests of training data, which reveal images that were exchanged under unchanged names."""

import hashlib
from collections.abc import Mapping
from typing import Literal

from flax_vae.convert.console import printable
from flax_vae.convert.errors import shorten
from flax_vae.images import StorageError, in_threads
from flax_vae.train.data.photographs import Photographs
from flax_vae.train.errors import DataError

How = Literal["content", "ends"]

_ENDS = "ends sha256 "
_HEX = 16  # characters kept of the SHA-256 of ends, since large data sets have many


def data_listing(
    photographs: Photographs, how: How | None = None, *, most_bytes: int = 2_000_000_000
) -> dict[str, str]:
    """Returns a digest of the stored content of each image, by its name, in order.

    The listing does not depend on where the data are: moving a folder does not change it.

    Args:
      photographs: Open training data, the held-out image among them.
      how: Kind of digest.  `content` reads every byte: `SIZE bytes, sha256 HEX`.  `ends` reads the first and last
        4 KiB of each image: `SIZE bytes, ends sha256 HEX`; it takes about as long as reading all headers and does not
        notice an edit that changes neither size nor ends.  None: `content` up to `most_bytes`, else `ends`.
      most_bytes: Total size up to which every byte is read at every start.

    Raises:
      StorageError: If a file is missing, or the disk fails.
    """
    source = photographs.source

    def read(whole: bool) -> tuple[int, dict[str, str]]:
        total, listing = 0, {}
        for index, found in in_threads(lambda index: source.digest(index, whole=whole), range(len(source))):
            if isinstance(found, StorageError):
                raise found
            name = printable(source.name(index))
            if isinstance(found, DataError):  # may be skipped in training, but differs from an image that can be read
                listing[name] = "unreadable"
                continue
            size, digest = found
            listing[name] = f"{size} bytes, " + (f"sha256 {digest}" if whole else f"{_ENDS}{digest[:_HEX]}")
            total += size
        return total, listing

    if how == "content":
        return read(whole=True)[1]
    total, listing = read(whole=False)
    return listing if how == "ends" or total > most_bytes else read(whole=True)[1]


def how_listed(listing: Mapping[str, str]) -> How:
    """Returns how a listing was made.

    Args:
      listing: Content of each image by name, as returned by `data_listing`.
    """
    return "ends" if any(_ENDS in text for text in listing.values()) else "content"


def find_changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Compares two listings that were made in the same way.

    Args:
      before: Listing of before.
      after: Listing of now.

    Returns:
      One phrase for each kind of change, such as `2 added (x.png, y.png)`; empty if the data are the same.
    """
    found = {
        "removed": [name for name in before if name not in after],
        "added": [name for name in after if name not in before],
        "edited": [name for name in before if name in after and before[name] != after[name]],
    }
    phrases = [f"{len(names):,} {what} ({shorten(names)})" for what, names in found.items() if names]
    return phrases or ([] if list(before) == list(after) else ["the images are in another order"])


def digest_of_listing(listing: Mapping[str, str]) -> str:
    """Returns one SHA-256 of names and contents, in hexadecimal.

    Args:
      listing: Content of each image by name, as returned by `data_listing`.
    """
    total = hashlib.sha256()
    for name, text in listing.items():
        total.update(f"{name}\0{text}\0".encode())
    return total.hexdigest()
