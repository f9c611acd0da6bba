"""Shards in files of other programs, which have no place for notes: these are in a JSON file beside them, the seal.

The seal is written last.  It holds the length and the SHA-256 of each file, and what resuming needs: the plan, the
statistics, skipped images, and the SHA-256 of every image.
"""

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from flax_vae.convert.errors import FileError
from flax_vae.convert.files import atomic_file, digest_of, loads_object, read_at
from flax_vae.convert.latents.index import Run, ShardRecord
from flax_vae.convert.latents.shard import LatentEntry, ShardContent, ShardNotes, Skip
from flax_vae.convert.latents.statistics import ChannelStats
from flax_vae.convert.latents.storage import ShardStorage

_SEAL = r"latents-\d{5,}\.json"
_OWN = "sha256"  # key of the seal's own digest


class SealedShards(ShardStorage):
    """Shards with a seal.

    Attributes:
      data: Regular expression of the names of the files without the seal.
    """

    data: ClassVar[str]

    @property
    def files(self) -> str:
        """Regular expression of the names of all files."""
        return f"{_SEAL}|{self.data}"

    def file(self, number: int) -> str:
        """Returns the name of the seal."""
        return f"latents-{number:05d}.json"

    def others(self, folder: Path, number: int) -> list[str]:
        """Returns the names of the files that the seal lists."""
        return list(self._read(folder / self.file(number))[1]["files"])

    def require(self, dtype: str) -> None:
        """Does nothing: the format has every dtype."""

    @abstractmethod
    def write_data(self, folder: Path, number: int, content: ShardContent) -> dict[str, str]:
        """Writes the files of a shard that has latents, each of them atomically.

        Returns:
          SHA-256 of each file in hexadecimal, by its name.
        """

    def write(self, folder: Path, number: int, content: ShardContent, plan: str) -> None:
        """Writes the files of a shard, then its seal."""
        digests = self.write_data(folder, number, content) if content.entries else {}
        values = {
            "storage": self.storage,
            "plan": plan,
            "shard": number,
            "runs": [list(run) for run in content.runs],
            "moments": content.moments.dumps(),
            "skipped": content.skipped,
            "files": {name: [(folder / name).stat().st_size, sha256] for name, sha256 in digests.items()},
            "sources": {entry.name: entry.source_sha256.hex() for entry in content.entries},
        }
        with atomic_file(folder / self.file(number), force=True) as file:
            file.write_text(json.dumps(values | {_OWN: digest_of(values)}) + "\n", encoding="utf-8")

    def notes(self, folder: Path, number: int) -> ShardNotes:
        """Reads the seal of a shard."""
        path = folder / self.file(number)
        text, values = self._read(path)
        for name, (size, _) in values["files"].items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                raise FileError(f"{folder / name} is missing or incomplete; encode it again", path=folder / name)
        runs = tuple(Run(*run) for run in values["runs"])
        entries = sum(run.count for run in runs)
        data = hashlib.sha256("".join(sha256 for _, sha256 in values["files"].values()).encode()).hexdigest()
        record = ShardRecord(path.name, entries, runs, data, len(text), hashlib.sha256(text).hexdigest())
        moments, skipped = ChannelStats.loads(values["moments"]), [Skip(*skip) for skip in values["skipped"]]
        return ShardNotes(record, values["plan"], values["shard"], moments, skipped)

    def sources(self, folder: Path, number: int) -> dict[str, str]:
        """Compares the files of a shard with its seal."""
        values = self._read(folder / self.file(number))[1]
        for name, (_, expected) in values["files"].items():
            if file_sha256(folder / name) != expected:
                raise FileError(f"{folder / name} has changed since it was written; encode it again")
        return values["sources"]

    def _read(self, path: Path) -> tuple[bytes, dict[str, Any]]:
        try:
            text = read_at(path)
            values = loads_object(text)
            if values.pop(_OWN) != digest_of(values) or values["storage"] != self.storage:
                raise ValueError("it was changed")
            if any(not re.fullmatch(self.data, name) for name in values["files"]):  # nothing else may be read
                raise ValueError("it lists files of other names")
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path} is not the seal of a shard ({error}); encode it again", path=path) from error
        return text, values


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry_rows(content: ShardContent) -> Iterator[tuple[LatentEntry, Mapping[str, np.ndarray]]]:
    """Yields each entry of a shard with its arrays `h w c` by part."""
    entries = iter(content.entries)
    for batch in content.latents:
        for parts in zip(*batch.values(), strict=True):
            yield next(entries), dict(zip(batch, parts, strict=True))
