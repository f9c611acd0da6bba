"""Files of a latent data set during encoding: plan, shards, statistics and index."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.convert.console import printable
from flax_vae.convert.errors import ArgumentError, FileError
from flax_vae.convert.files import exists_at, read_at, remove_at, write_at
from flax_vae.convert.latents import (
    INDEX,
    PLAN,
    SKIPPED,
    STATISTICS,
    Encoding,
    LatentIndex,
    LatentStatistics,
    ShardContent,
    ShardNotes,
    ShardStorage,
    Storage,
    dump_index,
    images_file,
    read_latent_index,
    shard_storage,
)
from flax_vae.errors import DataError, UserError
from flax_vae.folders.batches import BatchLimits, Shard
from flax_vae.folders.output_folder import plan_sha256, read_plan, require_empty, require_same_plan, some, write_plan
from flax_vae.folders.parts import Part, resolve_parts
from flax_vae.images import ImageScan, in_threads

_BESIDE_SHARDS = r"plan\.json|index\.json|statistics\.json|skipped\.jsonl|images-\d{5,}\.jsonl"
OURS = re.compile("|".join([_BESIDE_SHARDS, *(shard_storage(name).files for name in get_args(Storage))]))
SIGNS = (PLAN, INDEX, images_file(0))  # one of which is in every data set; other programs write 00000000.pt too
_THREADS = 16  # that read the headers of shards, which is mostly waiting
_FORMAT = 2  # format of the plan; format 1 had no digests of the images
_REMEDY = "give the same again, choose another folder, or begin anew with --force"


@dataclass(frozen=True)
class DataSet:
    """The shards of a plan, in a folder.

    Attributes:
      folder: Folder of the data set; an `epath.Path` in a bucket.
      parts: Images of the plan.
      shards: Shards of all parts.
      storage: Format of the shards.
      plans: SHA-256 of the settings and images that determine a shard, by its number.
    """

    folder: Path
    parts: Sequence[Part]
    shards: Sequence[Shard]
    storage: ShardStorage
    plans: Mapping[int, str]

    @classmethod
    def begin(
        cls,
        folder: Path,
        found: ImageScan,
        encoding: Encoding,
        grouping: BatchLimits,
        storage: ShardStorage,
        append: bool,
    ) -> "DataSet":
        """Writes the plan, or compares it with that of an earlier start and extends it.

        Raises:
          UserError: If the folder holds other files or a different plan, or if the images differ from the plan; see
            `flax_vae.folders.parts.resolve_parts`.
        """
        settings = {"format": _FORMAT, "encoding": encoding.to_dict(), "grouping": asdict(grouping)}
        if storage.storage != "safetensors":  # left out as in plans of earlier versions
            settings["storage"] = storage.storage
        earlier = read_plan(folder, PLAN, _REMEDY)
        records: list[dict[str, Any]] = []
        if earlier is None:
            require_empty(folder, PLAN, images_file(0))
        else:
            if earlier.get("format") == 1:
                raise UserError(
                    f"{printable(folder)} was begun by an earlier version, which kept no digests of the images: it can "
                    "be read and decoded, but not continued; choose another folder, or begin anew with --force",
                    path=folder,
                )
            records = earlier.pop("parts", records)
            require_same_plan(folder, earlier, settings, _REMEDY)
            if not isinstance(records, list):
                raise UserError(f"{printable(folder / PLAN)} is damaged (it lists no images); {_REMEDY}")
        parts = resolve_parts(folder, found, records, append)
        for index, part in enumerate(parts):
            if index >= len(records) or not exists_at(folder / images_file(index)):
                write_at(folder / images_file(index), part.text.encode())
        if earlier is None or len(parts) > len(records):
            write_plan(folder, PLAN, settings | {"parts": [part.record for part in parts]})
        shards: list[Shard] = []
        plans: dict[int, str] = {}
        for part in parts:
            added = part.shards(len(shards), encoding.multiple, grouping, one_size=storage.one_size)
            # Independent of later parts, so that shards stay valid when images are appended.
            plan = plan_sha256(settings | {"first": part.first, "images": part.record})
            plans |= {shard.number: plan for shard in added}
            shards += added
        return cls(folder, parts, shards, storage, plans)

    def whole(self, shards: Sequence[Shard]) -> dict[int, ShardNotes]:
        """Returns the shards that exist, by their headers; a damaged shard counts as missing."""

        def read(shard: Shard) -> ShardNotes | None:
            with contextlib.suppress(FileNotFoundError, FileError):
                notes = self.storage.notes(self.folder, shard.number)
                return notes if (notes.plan, notes.number) == (self.plans[shard.number], shard.number) else None

        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(read, shards)
            return {shard.number: notes for shard, notes in zip(shards, found, strict=True) if notes is not None}

    def intact(self, shards: Sequence[Shard], found: ImageScan) -> tuple[dict[int, ShardNotes], tuple[str, ...]]:
        """Verifies the shards that exist, and the images that they were encoded from.

        Args:
          shards: Shards of the plan.
          found: Images of the source.

        Returns:
          The intact shards, and the file names of the others that exist.

        Raises:
          UserError: If the content of images changed since they were encoded; names the images.
          DataError: If an image cannot be read.
        """
        done = self.whole(shards)
        changed: list[str] = []
        for number, notes in list(done.items()):
            try:
                encoded = self.storage.sources(self.folder, number)
            except FileError:
                del done[number]
                continue
            encoded |= {skip.name: skip.source_sha256 for skip in notes.skipped if skip.source_sha256}
            if not encoded.keys() <= found.positions.keys():
                del done[number]
                continue
            before = {found.positions[name]: sha256 for name, sha256 in encoded.items()}
            for index, digest in in_threads(found.source.digest, before):
                if isinstance(digest, DataError):
                    raise digest
                if digest[1] != before[index]:
                    changed.append(printable(found.source.name(index)))
        if changed:
            raise UserError(
                f"{len(changed):,} images in {found.source.where} changed since they were encoded "
                f"({some(sorted(changed))}); restore them, choose another folder, or begin anew with --force"
            )
        files = (self.storage.file(shard.number) for shard in shards if shard.number not in done)
        return done, tuple(file for file in files if exists_at(self.folder / file))

    def withdraw_index(self, todo: Sequence[Shard]) -> None:
        """Removes the index if it lists a shard that is to be encoded again; appended images leave it valid."""
        try:
            listed = {record.file for record in read_latent_index(self.folder).shards}
        except FileNotFoundError:
            return
        except FileError:
            listed = {self.storage.file(shard.number) for shard in todo}
        if any(self.storage.file(shard.number) in listed for shard in todo):
            remove_at(self.folder / INDEX)

    def write(self, number: int, content: ShardContent) -> None:
        """Writes a shard."""
        self.storage.write(self.folder, number, content, self.plans[number])

    def complete(self, found: ImageScan, encoding: Encoding, notes: list[ShardNotes]) -> None:
        """Writes statistics, skipped images and, last, the index, unless the files are up to date."""
        plan = read_plan(self.folder, PLAN, _REMEDY) or {}
        if plan.get("parts") != [part.record for part in self.parts]:
            return  # another process has appended images, and will complete the data set
        for name, text in self._summaries(found, encoding, notes):
            path = self.folder / name
            if not exists_at(path) or read_at(path) != text.encode():
                write_at(path, text.encode())

    def _summaries(self, found: ImageScan, encoding: Encoding, notes: list[ShardNotes]) -> Iterator[tuple[str, str]]:
        unreadable = ((found.source.name(index), str(error)) for index, error in found.errors.items())
        skipped = [*unreadable, *((skip.name, skip.reason) for note in notes for skip in note.skipped)]
        if skipped:
            lines = [json.dumps({"name": name, "reason": reason}) for name, reason in sorted(skipped)]
            yield SKIPPED, "\n".join(lines) + "\n"
        factors = None  # of latents that need none, as they are normalised or those of a diffusion model
        architecture = encoding.architecture
        if isinstance(architecture, AutoEncoderParams) and not architecture.normalises_channels:
            factors = (architecture.scale_factor, architecture.shift_factor) if encoding.scaled else (1.0, 0.0)
        try:
            statistics = LatentStatistics.of(
                (note.moments for note in notes),
                encoding.channels,
                scaled=encoding.scaled,
                factors=factors,
            )
        except ArgumentError as error:
            raise UserError(str(error)) from error
        yield STATISTICS, json.dumps(statistics.to_dict(), indent=2) + "\n"
        records = tuple(note.record for note in notes)
        entries = sum(record.entries for record in records)
        rows = [row for part in self.parts for row in part.rows]
        columns = tuple(name for name in ("label", "caption") if any(getattr(row, name) is not None for row in rows))
        images = len(rows) - len(skipped)
        index = LatentIndex(encoding, entries, images, len(skipped), records, statistics, self.storage.storage, columns)
        yield INDEX, dump_index(index)
