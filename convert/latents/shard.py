"""Writes and reads a shard of latents: tensors by size, and columns with the properties of each entry."""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flax_vae.convert.errors import FileError
from flax_vae.convert.formats import DIGEST, ArrayLike, fingerprint, read_metadata, read_tensors, write_tensors
from flax_vae.convert.latents.index import Run, ShardRecord, shard_file
from flax_vae.convert.latents.statistics import ChannelStats

COLUMNS = ("number", "height", "width", "flipped", "name", "name_end", "source_sha256", "crc32")
# Columns of shards whose images have labels or captions.
OPTIONAL_COLUMNS = ("label", "caption", "caption_end")
NO_LABEL = -1


class LatentEntry(NamedTuple):
    """Properties of one latent.

    Attributes:
      number: Number of the image in the source.
      name: Path of the image within the source.
      height: Height of the encoded image in pixels.
      width: Width of the encoded image in pixels.
      flipped: Whether it is the mirror image.
      source_sha256: SHA-256 of the image file, 32 bytes.
      label: Number of the class, `NO_LABEL` if the image has none; None if no image of the source has one.
      caption: Text that describes the image, empty if it has none; None if no image of the source has one.
    """

    number: int
    name: str
    height: int
    width: int
    flipped: bool
    source_sha256: bytes
    label: int | None = None
    caption: str | None = None


class Skip(NamedTuple):
    """An image that could not be read.

    Attributes:
      name: Path of the image within the source.
      reason: Error from reading it.
      source_sha256: SHA-256 of the file in hexadecimal; None if it could not be opened.
    """

    name: str
    reason: str
    source_sha256: str | None


@dataclass
class ShardContent:
    """Content of a shard to be written.

    Attributes:
      entries: Entries in order.
      latents: Batches `n h w c` by part, in the order of the entries.
      moments: Channel statistics of the latents.
      skipped: Images of the shard that could not be read.
    """

    moments: ChannelStats
    entries: list[LatentEntry] = field(default_factory=list)
    latents: list[dict[str, np.ndarray]] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)

    @property
    def labels(self) -> np.ndarray | None:
        """Label of each entry, `NO_LABEL` for none, int64; None if no entry has one."""
        if all(entry.label is None for entry in self.entries):
            return None
        return np.array([NO_LABEL if entry.label is None else entry.label for entry in self.entries], np.int64)

    @property
    def captions(self) -> list[str] | None:
        """Caption of each entry, empty for none; None if no entry has one."""
        if all(entry.caption is None for entry in self.entries):
            return None
        return [entry.caption or "" for entry in self.entries]

    @property
    def runs(self) -> list[tuple[int, int, int]]:
        """Height, width and count of consecutive latents of one size.

        Raises:
          ValueError: If the latents are not sorted by size.
        """
        runs: dict[tuple[int, int], int] = {}
        for batch in self.latents:
            count, height, width, _ = next(iter(batch.values())).shape
            if (height, width) in runs and (height, width) != next(reversed(runs)):
                raise ValueError(f"latents of {height} x {width} are not consecutive; sort them by size")
            runs[height, width] = runs.get((height, width), 0) + count
        return [(*size, count) for size, count in runs.items()]

    def add(self, entries: Sequence[LatentEntry], latents: dict[str, np.ndarray]) -> None:
        """Appends a batch.

        Args:
          entries: Entry of each image.
          latents: Stored arrays by name, with a row for each image.
        """
        self.entries += entries
        self.latents.append(latents)
        mean, *spread = latents
        self.moments += ChannelStats.of(latents[mean], **{part: latents[part] for part in spread})


def write_shard(folder: Path, number: int, content: ShardContent, plan: str) -> None:
    """Writes a shard atomically.

    Args:
      folder: Folder of the data set.
      number: Number of the shard.
      content: Entries and latents, sorted by the size of the latent.
      plan: SHA-256 of the plan that the shard belongs to.

    Raises:
      ValueError: If the latents are not sorted by size.
    """
    runs, batches = content.runs, iter(content.latents)
    tensors: dict[str, ArrayLike] = {}
    for height, width, count in runs:
        together = []
        while count > 0:
            together.append(next(batches))
            count -= len(next(iter(together[-1].values())))
        tensors |= {
            f"{part}/{height}x{width}": np.concatenate([batch[part] for batch in together]) for part in together[0]
        }
    names = [os.fsencode(entry.name) for entry in content.entries]
    columns: dict[str, np.ndarray] = {
        "number": np.array([entry.number for entry in content.entries], np.int64),
        "height": np.array([entry.height for entry in content.entries], np.int32),
        "width": np.array([entry.width for entry in content.entries], np.int32),
        "flipped": np.array([entry.flipped for entry in content.entries], bool),
        "name": np.frombuffer(b"".join(names), np.uint8),
        "name_end": np.cumsum([len(name) for name in names], dtype=np.int64),
        "source_sha256": np.frombuffer(b"".join(entry.source_sha256 for entry in content.entries), np.uint8),
        "crc32": np.array([crc for batch in content.latents for crc in _checksums(batch)], np.uint32),
    }
    columns["source_sha256"] = columns["source_sha256"].reshape(len(content.entries), 32)
    if content.labels is not None:
        columns["label"] = content.labels
    if content.captions is not None:
        captions = [caption.encode("utf-8", "surrogateescape") for caption in content.captions]
        columns["caption"] = np.frombuffer(b"".join(captions), np.uint8)
        columns["caption_end"] = np.cumsum([len(caption) for caption in captions], dtype=np.int64)
    metadata = {
        "plan": plan,
        "shard": str(number),
        "columns_sha256": columns_sha256(columns),
        "runs": json.dumps(runs),
        "moments": content.moments.dumps(),
        "skipped": json.dumps(content.skipped),
    }
    write_tensors(folder / shard_file(number), tensors | columns, metadata=metadata, force=True)


def columns_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of the columns of a shard; each latent has a checksum of its own."""
    digest = hashlib.sha256()
    for name in (*COLUMNS, *(name for name in OPTIONAL_COLUMNS if name in tensors)):
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def checksum(latents: Sequence[np.ndarray]) -> int:
    """Returns the CRC-32 of an entry, over its parts in order; runs at 1 GB/s or more."""
    crc = 0
    for latent in latents:
        crc = zlib.crc32(np.ascontiguousarray(latent).reshape(-1).view(np.uint8).data, crc)
    return crc


def _checksums(batch: Mapping[str, np.ndarray]) -> list[int]:
    return [checksum(parts) for parts in zip(*batch.values(), strict=True)]


class ShardNotes(NamedTuple):
    """Metadata in the header of a shard.

    Attributes:
      record: Entry of the shard in the index.
      plan: SHA-256 of the plan that the shard belongs to.
      number: Number of the shard, to compare with its name.
      moments: Channel statistics of its latents.
      skipped: Images of the shard that could not be read.
    """

    record: ShardRecord
    plan: str
    number: int
    moments: ChannelStats
    skipped: list[Skip]


def read_notes(path: Path) -> ShardNotes:
    """Reads the header of a shard, and checks that the file has the length that the header states.

    Args:
      path: Path of the shard.

    Returns:
      Notes on the shard.

    Raises:
      FileNotFoundError: If the file does not exist.
      FileError: If it is not a complete shard.
    """
    metadata = read_metadata(path)
    try:
        runs = tuple(Run(*map(int, run)) for run in json.loads(metadata["runs"]))
        skipped = [Skip(*skip) for skip in json.loads(metadata["skipped"])]
        entries = sum(run.count for run in runs)
        record = ShardRecord(path.name, entries, runs, metadata[DIGEST], *fingerprint(path))
        moments = ChannelStats.loads(metadata["moments"])
        return ShardNotes(record, metadata["plan"], int(metadata["shard"]), moments, skipped)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(
            f"{path} is not a shard of latents ({error!r}); remove it and encode again", path=path
        ) from error


def read_sources(path: Path) -> dict[str, str]:
    """Reads all of a shard and returns the SHA-256 of each image file in it, in hexadecimal, by name.

    Args:
      path: Path of the shard.

    Returns:
      SHA-256 by name of the image.

    Raises:
      FileNotFoundError: If the file does not exist.
      FileError: If the file was changed after it was written.
    """
    tensors = read_tensors(path)
    if read_metadata(path).get("columns_sha256") != columns_sha256(tensors):
        raise FileError(f"{path} is damaged: the names or numbers of its images changed; encode it again", path=path)
    digests = [row.tobytes().hex() for row in tensors["source_sha256"]]
    return {name_of(tensors, row): digest for row, digest in enumerate(digests)}


def name_of(tensors: Mapping[str, np.ndarray], row: int) -> str:
    """Returns the name of the image of an entry."""
    return os.fsdecode(_text(tensors, "name", row))


def caption_of(tensors: Mapping[str, np.ndarray], row: int) -> str:
    """Returns the caption of the image of an entry, empty for none."""
    return _text(tensors, "caption", row).decode("utf-8", "surrogateescape") if "caption" in tensors else ""


def label_of(tensors: Mapping[str, np.ndarray], row: int) -> int:
    """Returns the label of the image of an entry, `NO_LABEL` for none."""
    return int(tensors["label"][row]) if "label" in tensors else NO_LABEL


def _text(tensors: Mapping[str, np.ndarray], column: str, row: int) -> bytes:
    ends = tensors[f"{column}_end"]
    return tensors[column][int(ends[row - 1]) if row else 0 : int(ends[row])].tobytes()


def require_listed(folder: Path, record: ShardRecord) -> None:
    """Checks by its header that a shard matches the index; does not read the data.

    Raises:
      FileError: If it is missing, truncated, or does not match.
    """
    path = folder / record.file
    remedy = "get it again, or run the same flax-vae encode, which makes it again"
    if not path.is_file():
        raise FileError(f"{path} is missing, and the index lists it; {remedy}", path=path)
    if record.header_sha256 is None:  # format 1
        same = read_metadata(path).get(DIGEST) == record.data_sha256
    else:
        found = fingerprint(path)
        if found.header_sha256 == record.header_sha256 and found.size != record.size:
            raise FileError(
                f"{path} is not a complete safetensors file: it has {found.size:,} bytes, and had {record.size:,} when "
                f"it was written; {remedy}",
                path=path,
            )
        same = found.header_sha256 == record.header_sha256
    if not same:
        raise FileError(f"{path} is not the shard that the index describes but another one; {remedy}", path=path)
