"""Tar archives of images, as WebDataset packs them, on disk or in a bucket."""

import os
from collections import Counter

from flax_vae.convert.console import Progress, printable
from flax_vae.convert.errors import shorten
from flax_vae.errors import DataError
from flax_vae.images.formats import SUFFIXES, UNREAD
from flax_vae.images.read import StorageError, fetch_content
from flax_vae.images.scan import in_threads
from flax_vae.images.sources.addresses import file_name, files_at, split_options
from flax_vae.images.sources.annotations import Annotations
from flax_vae.images.sources.protocol import FileSource
from flax_vae.images.sources.tar_index import TarIndex, tar_index

# Also of compressed archives, which are refused with advice.
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
TAR_OPTIONS = ("image",)


class TarSource(FileSource):
    """The images in one or several tar archives, in the order of the archives and of their members.

    The address is `FILE.tar[,image=jpg]`, with braces or wildcards for several archives.  Every image file is an image;
    with `image=`, only files with that ending.  Labels and captions are those of `Annotations`; files belong together,
    as in WebDataset, if they are equal up to the first dot of their name.  The name of an image is its path in the
    archive, of several archives below the name of its archive.

    Nothing is unpacked: an image is read by its position in the archive, from an index that is built once and kept.
    So any process can read any image.  In training, processes divide the examples of a batch, not the archives: each
    example is drawn from all images, as a pure function of seed, step and its number, so that a run does not depend on
    the number of processes.  In `flax-vae encode`, a shard of latents holds consecutive images of equal size, so that
    each process mostly reads a few archives that the others do not, in order.
    """

    def __init__(self, address: str):
        """Opens the archives, and builds indices that are missing.

        Raises:
          DataError: If there are none, one is missing, compressed or damaged, two have one name, or options are
            unknown.
          StorageError: If one cannot be fetched.
        """
        place, options = split_options(address, TAR_OPTIONS)
        self.where = printable(address)
        self._archives = files_at(place)
        self._indices = _read_indices(self._archives)
        several = len(self._archives) > 1
        within = [f"{file_name(file)}/" if several else "" for file in self._archives]
        twice = next((name for name, count in Counter(within).items() if count > 1), None)
        if twice is not None:
            raise DataError(f"{self.where} has two archives called {printable(twice[:-1])!r}; rename one", path=place)
        wanted = (f".{options['image'].lstrip('.').lower()}",) if options else tuple(SUFFIXES)
        self._images: list[tuple[str, int, int]] = []  # name, number of the archive, row in its index
        self._others: dict[str, tuple[int, int]] = {}
        for number, index in enumerate(self._indices):
            for row, name in enumerate(index.names):
                if name.lower().endswith(wanted) and not _is_hidden(name):
                    self._images.append((within[number] + name, number, row))
                else:
                    self._others[within[number] + name] = number, row
        self._beside = Annotations(
            [name for name, _, _ in self._images],
            {folder for index in self._indices for folder in index.folders},
            self._others,
            self._annotation,
            sample_key,
            (lambda name: name.partition("/")[2]) if several else (lambda name: name),
        )
        self.classes, self.label_notes = self._beside.classes, self._beside.notes
        self.notes = self._notes()
        self._others = {name: place for name, place in self._others.items() if name in self._beside.files}

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """Returns the path in the archive, below the name of the archive if there are several."""
        return self._images[index][0]

    def printable_name(self, index: int) -> str:
        """Returns archive and path, such as `photos.tar[a/1.jpg]`."""
        _, number, row = self._images[index]
        return self._member(number, row)

    def label(self, index: int) -> int | None:
        """Returns the number beside the image file, or that of its folder at the top."""
        return self._beside.label(index)

    def caption(self, index: int) -> str | None:
        """Returns the text beside the image file."""
        return self._beside.caption(index)

    def size(self, index: int) -> tuple[int, int]:
        """Returns height and width from the index of the archive."""
        _, number, row = self._images[index]
        height, width = self._indices[number].pixels[row].tolist()
        return (height, width) if height else super().size(index)  # which raises what is wrong

    def file(self, index: int) -> bytes:
        """Returns the content of an image file."""
        _, number, row = self._images[index]
        return self._read(number, row)

    def digest(self, index: int, *, whole: bool = True) -> tuple[int, str]:
        """Returns size and SHA-256 from the index of the archive."""
        _, number, row = self._images[index]
        found = self._indices[number]
        return int(found.sizes[row]), found.digests[row, 0 if whole else 1].tobytes().hex()

    def _annotation(self, name: str, most: int) -> bytes:
        number, row = self._others[name]
        kept = self._indices[number].text(row)
        return self._read(number, row, most) if kept is None else kept

    def _read(self, number: int, row: int, most: int | None = None) -> bytes:
        index = self._indices[number]
        start, size = int(index.offsets[row]), int(index.sizes[row])
        if most is not None and size > most:
            raise DataError(f"{self._member(number, row)} has {size:,} bytes, more than {most:,}; remove it")
        name = self._member(number, row)
        content = fetch_content(self._archives[number], name, start, start + size) if size else b""
        if len(content) != size:
            raise StorageError(f"{self._member(number, row)} was cut off; restore the archive, then start again")
        return content

    def _member(self, number: int, row: int) -> str:
        return f"{printable(file_name(self._archives[number]))}[{printable(self._indices[number].names[row])}]"

    def _notes(self) -> list[str]:
        notes = []
        keys = Counter(sample_key(name) for name, _, _ in self._images)
        shared = [printable(key) for key, count in keys.items() if count > 1]
        if shared:
            notes.append(
                f"several images: {len(shared):,} samples ({shorten(shared)}), each image counted by itself; "
                "image=ENDING reads only those with one ending"
            )
        unread = [name for name in self._others if os.path.splitext(name)[1].lower() in UNREAD]
        if unread:
            notes.append(f"not read: {len(unread):,} files of other formats ({shorten(map(printable, unread))})")
        others = [name for name in self._others if name not in self._beside.files and name not in set(unread)]
        if others:
            notes.append(f"besides: {len(others):,} other files ({shorten(map(printable, others))})")
        links = sum(index.links for index in self._indices)
        return [*notes, f"not read: {links:,} links and other members that are not files"] if links else notes


def sample_key(name: str) -> str:
    """Returns the part of a path that the files of a sample share: all before the first dot of the file's name.

    Source: WebDataset, `webdataset.tariterators.base_plus_ext`.
    """
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _read_indices(files: list[str]) -> list[TarIndex]:
    found = []
    with Progress(len(files), unit="archives") as progress:
        for _, index in in_threads(lambda number: tar_index(files[number]), range(len(files))):
            if isinstance(index, DataError):
                raise index
            found.append(index)
            progress.add(1)
    return found
