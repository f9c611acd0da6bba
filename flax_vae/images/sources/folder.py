"""Folders of images, including what is listed in them and not read."""

import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flax_vae.convert.console import printable
from flax_vae.convert.errors import shorten
from flax_vae.convert.files import address_below, is_address, list_at
from flax_vae.errors import DataError
from flax_vae.images.formats import FORMATS, SUFFIXES, UNREAD
from flax_vae.images.read import StorageError, fetch_content, file_content, image_size
from flax_vae.images.sources.annotations import Annotations
from flax_vae.images.sources.protocol import FileSource

_HEAD = 1 << 16  # bytes of an object that are fetched for its size
_SHORT_HEADERS = (b"\xff\xd8", b"\x89PNG")  # formats whose first bytes tell all that `image_size` checks


@dataclass(frozen=True)
class ImageFolder:
    """Files below a folder.  Names are sorted paths relative to it.

    Attributes:
      folder: Folder that was searched.
      images: Files whose ending is one of `flax_vae.images.formats.SUFFIXES`.
      unread: Pictures and films of other formats.
      other: Files of any other kind, hidden files and hidden folders.
      lost: Dangling links, and entries that are not files, such as pipes.
      repeated: Linked folders that are listed already under another name.
      folders: Names of the folders directly in the folder, linked or not, with images or without.
    """

    folder: Path
    images: tuple[str, ...]
    unread: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """One line for each kind of entry that is not read; empty if there are images only."""
        notes = []
        if self.unread:
            hints = dict.fromkeys(UNREAD[Path(name).suffix.lower()] for name in self.unread)
            advice = "; ".join(f"{kind}: {remedy}" for kind, remedy in hints)
            notes.append(f"not read: {_counted(self.unread, 'file')} of other formats; {advice}")
        if self.lost:
            notes.append(f"not read: {_counted(self.lost, 'link to nowhere or pipe', 'links to nowhere or pipes')}")
        if self.repeated:
            notes.append(f"not read twice: {_counted(self.repeated, 'linked folder')}, listed under another name")
        if self.other:
            notes.append(f"besides: {_counted(self.other, 'other file')}")
        return notes

    def require_images(self) -> None:
        """Refuses a folder without images.

        Raises:
          DataError: If it holds none; names the other files.
        """
        if not self.images:
            instead = "".join(f"; {note}" for note in self.notes)
            raise DataError(
                f"{printable(self.folder)} holds no image file; give a folder with images in it or below it "
                f"({FORMATS} are read){instead}",
                path=self.folder,
            )


class FolderSource(FileSource):
    """All image files below a folder, in any mix of sizes and formats, sorted by name.

    Labels and captions are those of `Annotations`; `a/b.jpg` shares `a/b.txt`, and `a` is its class.
    """

    def __init__(self, folder: Path | str):
        """Lists the files.

        Args:
          folder: Path, or address of a folder in a bucket.

        Raises:
          DataError: If the folder holds no image file, or as in `list_folder`.
          StorageError: If a bucket cannot be reached.
        """
        self._address = folder if isinstance(folder, str) and is_address(folder) else None
        listed = list_folder(Path(folder)) if self._address is None else list_bucket(self._address)
        listed.require_images()
        self._folder, self._files = Path(folder), listed.images
        self._beside = Annotations(
            listed.images, listed.folders, listed.other, self._annotation, lambda name: os.path.splitext(name)[0]
        )
        others = tuple(name for name in listed.other if name not in self._beside.files)
        self.where, self.notes = printable(folder), replace(listed, other=others).notes
        self.classes, self.label_notes = self._beside.classes, self._beside.notes

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """Returns the path relative to the folder."""
        return self._files[index]

    def printable_name(self, index: int) -> str:
        """Returns the path relative to the folder, printable."""
        return printable(self._files[index])

    def label(self, index: int) -> int | None:
        """Returns the number beside the image file, or that of its folder at the top."""
        return self._beside.label(index)

    def caption(self, index: int) -> str | None:
        """Returns the text beside the image file."""
        return self._beside.caption(index)

    def file(self, index: int) -> Path | bytes:
        """Returns the path of an image file, or the content of one in a bucket.

        Args:
          index: Number of the image, from 0.
        """
        if self._address is None:
            return self._folder / self._files[index]
        return fetch_content(address_below(self._address, self._files[index]), self.printable_name(index))

    def size(self, index: int) -> tuple[int, int]:
        """Returns height and width; of images in a bucket, only the first bytes are fetched if they are enough."""
        if self._address is not None:
            place, name = address_below(self._address, self._files[index]), self.printable_name(index)
            head = fetch_content(place, name, 0, _HEAD)
            if len(head) == _HEAD and head.startswith(_SHORT_HEADERS):
                with contextlib.suppress(DataError):
                    return image_size(head, name)
            elif len(head) < _HEAD:
                return image_size(head, name)
        return super().size(index)

    def _annotation(self, name: str, most: int) -> bytes:
        if self._address is not None:
            return fetch_content(address_below(self._address, name), printable(name), 0, most)
        return file_content(self._folder / name, printable(name), most=most)


def list_bucket(address: str) -> ImageFolder:
    """Lists all objects below a folder in a bucket, as `list_folder` lists files.

    Raises:
      StorageError: If the bucket cannot be reached.
    """
    try:
        names = [entry.name for entry in list_at(address, recursive=True)]
    except OSError as error:
        raise StorageError(f"{printable(address)} cannot be listed ({error}); start again when it can") from error
    found: dict[str, list[str]] = {"images": [], "unread": [], "other": []}
    for name in names:
        hidden = any(part.startswith(".") for part in name.split("/"))
        found["other" if hidden else _kind_of_name(name)].append(name)
    folders = {name.partition("/")[0] for name in names if "/" in name and not name.startswith(".")}
    return ImageFolder(
        Path(address), **{kind: tuple(sorted(names)) for kind, names in found.items()}, folders=tuple(sorted(folders))
    )


def list_folder(folder: Path) -> ImageFolder:
    """Lists all files below a folder by their names.

    Follows links to files and folders.  A folder that can be reached in several ways is listed once, under its own name
    or else under that of the first link in order.  Hidden files and folders are not read.

    Raises:
      DataError: If it is not a folder, or a folder below it cannot be listed.
    """
    if not folder.is_dir():
        raise DataError(f"{printable(folder)} is not a folder; give one with images in it or below it", path=folder)
    found: dict[str, list[str]] = {"images": [], "unread": [], "other": [], "lost": [], "repeated": [], "folders": []}
    seen: set[tuple[int, int]] = set()
    # Linked folders come after all folders that are here themselves.
    here, linked = [""], []
    while here or linked:
        name = here.pop() if here else linked.pop(0)
        path = folder / name
        if _is_repeated(path, seen):
            found["repeated"].append(name)
            continue
        for entry in _entries(path):
            below = f"{name}/{entry.name}" if name else entry.name
            kind = _kind(entry)
            if kind == "folder":
                (linked if entry.is_symlink() else here).append(below)
                linked.sort()
                if not name:
                    found["folders"].append(below)
            else:
                found[kind].append(below)
    return ImageFolder(folder, **{kind: tuple(sorted(names)) for kind, names in found.items()})


def _kind(entry: "os.DirEntry[str]") -> str:
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError as error:  # a link to itself, or to a place that cannot be read
        if error.errno not in (errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG):
            raise DataError(
                f"{printable(entry.path)} cannot be read ({os.strerror(error.errno or 0)}); repair or remove it",
                path=entry.path,
            ) from error
        is_folder = is_file = False
    if entry.name.startswith("."):
        return "other"
    if is_folder:
        return "folder"
    if not is_file:
        return "lost"
    return _kind_of_name(entry.name)


def _kind_of_name(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    return "images" if suffix in SUFFIXES else "unread" if suffix in UNREAD else "other"


def _entries(path: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{printable(path)} cannot be listed ({os.strerror(error.errno or 0)}); make it readable, or leave it out",
            path=path,
        ) from error


def _is_repeated(path: Path, seen: set[tuple[int, int]]) -> bool:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be listed ({os.strerror(error.errno or 0)})", path=path) from error
    place = status.st_dev, status.st_ino
    repeated = place in seen
    seen.add(place)
    return repeated


def _counted(names: Sequence[str], one: str, many: str | None = None) -> str:
    return f"{len(names):,} {one if len(names) == 1 else many or one + 's'} ({shorten(map(printable, names))})"
