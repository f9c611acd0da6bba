"""Indices of tar archives: where each member lies, with what is known of images; built once, and kept.

Building reads the whole archive once, in order, which is how a bucket is read fastest.  An index is kept in the user's
cache folder (`flax_vae.convert.files.cache_folder`), because archives often lie where users cannot write.  It is
read again as long as size and time of the archive, or its version in a bucket, are those for which it was built.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from flax_vae.convert.console import available_cpus, printable
from flax_vae.convert.errors import one_line
from flax_vae.convert.files import atomic_file, cache_folder, is_address, loads_object, open_at, stamp_at
from flax_vae.errors import DataError
from flax_vae.images.formats import SUFFIXES
from flax_vae.images.read import StorageError, file_digest, image_size
from flax_vae.images.sources.annotations import CAPTION_KEYS, LABEL_KEYS, MOST_BYTES
from flax_vae.images.sources.annotations import SUFFIXES as ANNOTATION_SUFFIXES

_FORMAT = 2  # format 1 held no captions
_MOST_IMAGE = 1 << 30  # bytes of an image; larger ones are refused where they are used
_MOST_TEXT = 4096  # bytes of a label or a caption that the index holds itself
_AHEAD = 64  # images whose headers are being read
_MOST_CHECKED = 1 << 20  # bytes after the end that are compared with zero
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd"),
    b"\x04\x22\x4d\x18": ("LZ4", "unlz4"),
}


@dataclass(frozen=True)
class TarIndex:
    """Regular files in a tar archive, in order.

    Attributes:
      names: Paths with `/`, without a leading `./`.
      offsets: Position of the content in the archive, in bytes.
      sizes: Number of bytes of the content.
      pixels: Height and width of an image, upright; 0 for other files and for images whose header cannot be read.
      digests: SHA-256 of an image, of the whole and of both ends; see `flax_vae.images.read.file_digest`.
      texts: Content of short `.cls` and `.txt` files, and the labels and captions of `.json` files, one after another.
      text_ends: Position in `texts` after the content of each file.
      kept: Whether `texts` holds the content of each file.
      folders: Names of the folders at the top.
      links: Number of links and other members that are not files.
    """

    names: list[str]
    offsets: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, " n"]
    pixels: Int[np.ndarray, "n 2"]
    digests: UInt8[np.ndarray, "n 2 32"]
    texts: bytes
    text_ends: Int[np.ndarray, " n"]
    kept: Bool[np.ndarray, " n"]
    folders: list[str]
    links: int

    def text(self, row: int) -> bytes | None:
        """Returns the content of a file beside an image, or None if the index does not hold it."""
        if not self.kept[row]:
            return None
        return self.texts[self.text_ends[row - 1] if row else 0 : self.text_ends[row]]


class _Look(NamedTuple):
    """Size and digests of an image; see `TarIndex`."""

    size: tuple[int, int]
    digests: bytes


_NOT_AN_IMAGE = _Look((0, 0), bytes(64))


def tar_index(place: str) -> TarIndex:
    """Returns the index of an archive, from the cache or by reading the archive.

    Args:
      place: Path or address of the archive.

    Raises:
      DataError: If the archive is missing, damaged or compressed.
      StorageError: If it cannot be fetched.
    """
    where = printable(place)
    try:
        stamp = stamp_at(place)
        file = cache_folder() / "tars" / f"{hashlib.sha256(_absolute(place).encode()).hexdigest()[:32]}.npz"
        kept = _load(file, stamp)
        if kept is None:
            with open_at(place) as opened:
                kept = _build(opened, where)
            with contextlib.suppress(OSError):  # where nothing can be kept, it is built at each start
                _store(file, stamp, kept)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{where} cannot be read ({error}); give the address of a tar archive") from error
    except OSError as error:
        raise StorageError(f"{where} cannot be read ({error}); start again when it can") from error
    return kept


def _absolute(place: str) -> str:
    return place if is_address(place) else os.path.realpath(place)


def _build(opened: IO[bytes], where: str) -> TarIndex:
    start = opened.read(8)
    for signature, (kind, command) in _COMPRESSED.items():
        if start.startswith(signature):
            raise DataError(
                f"{where} is compressed ({kind}), so that its images cannot be read at random; unpack it to a plain "
                f".tar with {command}, which costs little space, as images are compressed themselves"
            )
    opened.seek(0)
    names: dict[str, tuple[int, int]] = {}
    looks: dict[str, Future[_Look]] = {}
    waiting: deque[Future[_Look]] = deque()
    texts: dict[str, bytes] = {}
    folders: set[str] = set()
    links = 0
    try:
        with ThreadPoolExecutor(available_cpus(), thread_name_prefix="headers") as pool:
            for member in _members(opened):
                name = member.name.lstrip("/").removeprefix("./")
                if member.isdir() or "/" in name:
                    folders.add(name.partition("/")[0])
                if not member.isreg():
                    links += not member.isdir()
                    continue
                if name in names:
                    raise DataError(f"{where} has two members {printable(name)!r}; pack it again, with each once")
                names[name] = member.offset_data, member.size
                suffix = os.path.splitext(name)[1].lower()
                if suffix in SUFFIXES and member.size <= _MOST_IMAGE:
                    looks[name] = pool.submit(_describe, _content(opened, member), name)
                    waiting.append(looks[name])
                    if len(waiting) > _AHEAD:
                        waiting.popleft().result()
                elif suffix in ANNOTATION_SUFFIXES and member.size <= MOST_BYTES:
                    text = _short(suffix, _content(opened, member))
                    texts |= {} if text is None else {name: text}
    except (tarfile.TarError, EOFError, MemoryError, OverflowError, UnicodeError, ValueError) as error:
        raise DataError(
            f"{where} is not a whole tar archive ({one_line(error)}); get it again, or pack it again"
        ) from error
    found = [looks[name].result() if name in looks else _NOT_AN_IMAGE for name in names]
    return TarIndex(
        list(names),
        np.array([offset for offset, _ in names.values()], np.int64),
        np.array([size for _, size in names.values()], np.int64),
        np.array([look.size for look in found], np.int32).reshape(-1, 2),
        np.frombuffer(b"".join(look.digests for look in found), np.uint8).reshape(-1, 2, 32),
        b"".join(texts.get(name, b"") for name in names),
        np.cumsum([len(texts.get(name, b"")) for name in names], dtype=np.int64),
        np.array([name in texts for name in names], np.bool_),
        sorted(folder for folder in folders if folder not in ("", ".") and not folder.startswith(".")),
        links,
    )


def _members(opened: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yields each member in order, and checks that the archive ends as one."""
    size = opened.seek(0, os.SEEK_END)
    opened.seek(0)
    with tarfile.open(fileobj=opened, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # pyright: ignore[reportAttributeAccessIssue] - it would keep all of them in memory
            if member.issparse():
                raise ValueError(f"its member {printable(member.name)!r} is sparse")
            if member.isreg() and not 0 <= member.size <= size - member.offset_data:
                raise ValueError(f"it ends within {printable(member.name)!r}")
            yield member
        # `tarfile` takes a damaged header for the end.
        opened.seek(archive.offset)
        end = opened.read(tarfile.BLOCKSIZE)
        if len(end) < tarfile.BLOCKSIZE:
            raise ValueError("it has no mark at its end: a part is missing")
        if any(end):
            raise ValueError(f"the header at byte {archive.offset:,} is damaged")
        if any(opened.read(_MOST_CHECKED)):
            raise ValueError("it goes on after its end, as several archives in one file do")


def _content(opened: IO[bytes], member: tarfile.TarInfo) -> bytes:
    opened.seek(member.offset_data)
    return opened.read(member.size)


def _short(suffix: str, content: bytes) -> bytes | None:
    """Returns what the index holds of a file beside an image; None if it is long or damaged."""
    if suffix == ".json":
        try:
            values = loads_object(content)
        except ValueError:  # raised again where the label is used
            return None
        content = json.dumps({key: values[key] for key in (*LABEL_KEYS, *CAPTION_KEYS) if key in values}).encode()
    return content if len(content) <= _MOST_TEXT else None


def _describe(content: bytes, name: str) -> _Look:
    digests = b"".join(bytes.fromhex(file_digest(content, whole=whole)[1]) for whole in (True, False))
    try:
        return _Look(image_size(content, name), digests)
    except DataError:  # raised again where the image is used
        return _Look((0, 0), digests)


def _load(file: Path, stamp: str) -> TarIndex | None:
    """Returns a kept index; None if there is none for this stamp that is intact."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if (about["format"], about["stamp"]) != (_FORMAT, stamp):
                return None
            names = arrays["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
            columns = {name: arrays[name] for name in ("offsets", "sizes", "pixels", "digests", "text_ends", "kept")}
            texts = arrays["texts"].tobytes()
            if any(len(column) != len(names) for column in columns.values()):
                return None
            return TarIndex(names, **columns, texts=texts, folders=about["folders"], links=about["links"])
    except (OSError, ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _store(file: Path, stamp: str, index: TarIndex) -> None:
    about = {
        "format": _FORMAT,
        "stamp": stamp,
        "folders": index.folders,
        "links": index.links,
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        names=np.frombuffer("".join(f"{n}\0" for n in index.names).encode("utf-8", "surrogateescape"), np.uint8),
        offsets=index.offsets,
        sizes=index.sizes,
        pixels=index.pixels,
        digests=index.digests,
        texts=np.frombuffer(index.texts, np.uint8),
        text_ends=index.text_ends,
        kept=index.kept,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file, force=True) as partial:
        partial.write_bytes(buffer.getvalue())
