"""One shard of latents: tensors by size, and columns of what is known of each entry; see `convert.latent_index`."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert.errors import FileError
from convert.files import ArrayLike, read_metadata, write_tensors
from convert.latent_index import Run, ShardRecord, shard_file
from convert.latent_statistics import LatentMoments


class Entry(NamedTuple):
    """What is known of one latent: `number` and `name` of its image, size of the original, whether it is mirrored."""

    number: int
    name: str
    height: int
    width: int
    flipped: bool


@dataclass
class ShardContent:
    """What is to become a shard.

    Attributes:
      entries: in order.
      latents: batches `n h w c` by part, in the same order.
      moments: of those latents.
      skipped: name and reason of each image of the shard that could not be read.
    """

    moments: LatentMoments
    entries: list[Entry] = field(default_factory=list)
    latents: list[dict[str, np.ndarray]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def add(self, entries: Sequence[Entry], latents: dict[str, np.ndarray]) -> None:
        """Takes a batch in."""
        self.entries += entries
        self.latents.append(latents)
        self.moments += LatentMoments.of(*latents.values())


def write_shard(folder: Path, number: int, content: ShardContent, plan: str) -> None:
    """Writes a shard, which appears whole under its name or not at all.

    Args:
      folder: of the data set.
      number: of the shard.
      content: what goes in, latents of one size one after the other.
      plan: SHA-256 of the plan that it is a part of.

    Raises:
      ValueError: if latents are not sorted so.
    """
    runs: dict[tuple[int, int], list[dict[str, np.ndarray]]] = {}
    for batch in content.latents:
        shape = next(iter(batch.values())).shape
        size = (shape[1], shape[2])
        if size in runs and size != next(reversed(runs)):
            raise ValueError(f"latents of {size[0]} x {size[1]} come in two runs; sort them by size")
        runs.setdefault(size, []).append(batch)
    tensors: dict[str, ArrayLike] = {
        f"{part}/{height}x{width}": np.concatenate([batch[part] for batch in batches])
        for (height, width), batches in runs.items()
        for part in batches[0]
    }
    names = [os.fsencode(entry.name) for entry in content.entries]
    tensors |= {
        "number": np.array([entry.number for entry in content.entries], np.int64),
        "height": np.array([entry.height for entry in content.entries], np.int32),
        "width": np.array([entry.width for entry in content.entries], np.int32),
        "flipped": np.array([entry.flipped for entry in content.entries], bool),
        "name": np.frombuffer(b"".join(names), np.uint8),
        "name_end": np.cumsum([len(name) for name in names], dtype=np.int64),
    }
    counts = [(*size, sum(len(next(iter(batch.values()))) for batch in batches)) for size, batches in runs.items()]
    metadata = {
        "plan": plan,
        "runs": json.dumps(counts),
        "moments": content.moments.dumps(),
        "skipped": json.dumps(content.skipped),
    }
    write_tensors(folder / shard_file(number), tensors, metadata=metadata, force=True)


class ShardNotes(NamedTuple):
    """What the header of a shard says."""

    record: ShardRecord
    plan: str
    moments: LatentMoments
    skipped: list[tuple[str, str]]


def read_notes(path: Path) -> ShardNotes:
    """Reads what the header of a shard says; that the file is as long as its header promises is checked too.

    Raises:
      FileNotFoundError: if there is no such file.
      FileError: if it is not a whole shard.
    """
    metadata = read_metadata(path)
    try:
        runs = tuple(Run(*map(int, run)) for run in json.loads(metadata["runs"]))
        skipped = [(str(name), str(reason)) for name, reason in json.loads(metadata["skipped"])]
        record = ShardRecord(path.name, sum(run.count for run in runs), runs, metadata["data_sha256"])
        return ShardNotes(record, metadata["plan"], LatentMoments.loads(metadata["moments"]), skipped)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} is no shard of latents ({error!r}); remove it and encode again") from error
