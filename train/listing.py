"""Digests of training data, by which other images under the same names are noticed."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from train.data import Photographs
from train.errors import DataError

# Everything of a small data set is read.  Of a large one: images spread over all of it, until one of these is reached.
MOST_IMAGES = 4096
MOST_BYTES = 1 << 30
_THREADS = 16


def data_listing(photographs: Photographs) -> dict[str, str]:
    """Returns what is known of the stored content of each image: `SIZE bytes, sha256 HEX`, by its name.

    The names are complete and in order.  Content beyond `MOST_IMAGES` and `MOST_BYTES` is not read and is described
    by an empty string; which images that concerns depends on the number of images and on their sizes alone.

    Args:
      photographs: open training data, the held-out image among them.
    """
    source = photographs.source
    listing = {source.name(index): "" for index in range(len(source))}

    def describe(index: int) -> tuple[str, int]:
        try:
            size, digest = source.digest(index)
        except DataError:  # may be skipped in training, but is different from an image that can be read
            return "unreadable", 0
        return f"{size} bytes, sha256 {digest}", size

    read = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for chunk in _chunks(_spread(len(source))):
            for index, (text, size) in zip(chunk, pool.map(describe, chunk), strict=True):
                listing[source.name(index)] = text
                read += size
            if read >= MOST_BYTES:
                break
    return listing


def data_listing_digest(photographs: Photographs) -> str:
    """Returns one SHA-256 of `data_listing`, in hexadecimal."""
    return digest_of_listing(data_listing(photographs))


def digest_of_listing(listing: dict[str, str]) -> str:
    """Returns one SHA-256 of names and contents, in hexadecimal."""
    total = hashlib.sha256()
    for name, text in listing.items():
        total.update(f"{name}\0{text}\0".encode())
    return total.hexdigest()


def _spread(count: int) -> list[int]:
    """Returns at most `MOST_IMAGES` indices, in an order that covers the whole range from early on."""
    chosen = [place * count // MOST_IMAGES for place in range(MOST_IMAGES)] if count > MOST_IMAGES else range(count)
    return sorted(chosen, key=lambda index: index * 2654435761 % 2**32)  # Knuth's multiplicative hash


def _chunks(indices: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(indices), _THREADS):
        yield indices[start : start + _THREADS]
