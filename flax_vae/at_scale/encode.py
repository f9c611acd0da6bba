"""Folders of images to latent data sets: planned, computed shard by shard, resumed, put together.

A shard appears under its name only when it is whole, so whatever ends a process leaves whole shards; the next start
computes those that are missing.  Several processes share the shards out by their numbers and never speak to each other:
whoever finds that all are there writes the statistics and the index, and if two do at once, they write the same bytes.
"""

import contextlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convert.errors import FileError
from convert.files import new_file
from convert.latent_index import INDEX, PLAN, SKIPPED, STATISTICS, Encoding, LatentIndex, shard_file, write_index
from convert.latent_shards import ShardContent, ShardNotes, read_notes, write_shard
from convert.latent_statistics import LatentStatistics
from flax_vae.at_scale.buckets import Grouping, Shard, group
from flax_vae.at_scale.destination import begin, clean, clear, held, plan_sha256
from flax_vae.at_scale.encoder import LatentEncoder, weights_sha256
from flax_vae.at_scale.pipeline import Pipeline, Skips
from flax_vae.at_scale.progress import Progress
from flax_vae.at_scale.scan import Scan, scan
from flax_vae.autoencoder import AutoEncoder
from flax_vae.errors import UserError
from flax_vae.images import printable
from flax_vae.sharded import DECODES

_OURS = re.compile(r"plan\.json|index\.json|statistics\.json|skipped\.jsonl|latents-\d{5,}\.safetensors")


@dataclass(frozen=True)
class EncodeReport:
    """What a call has done.

    Attributes:
      images: that it encoded; 0 where nothing was left to do.
      entries: latents in the shards that are there.
      shards: that are there.
      missing: shards that other processes have not written yet; without any the data set is complete.
      skipped: images that were passed over, as far as they are known.
      seconds: that encoding took, without loading the model.
      computing: share of them in which the devices had a batch to compute, compiling included.
    """

    images: int
    entries: int
    shards: int
    missing: int
    skipped: int
    seconds: float
    computing: float


def encode_folder(
    source: Path,
    destination: Path,
    model: AutoEncoder,
    params: dict[str, Any],
    encoding: Encoding,
    grouping: Grouping | None = None,
    *,
    skip_bad: int = 0,
    force: bool = False,
    process: int = 0,
    processes: int = 1,
    devices: Sequence[Any] | None = None,
) -> EncodeReport:
    """Encodes all images below a folder into a latent data set, or goes on with one that was begun.

    The result depends on the images, the weights, `encoding` and `grouping` alone: on one kind of machine it is the
    same to the last bit however often it was interrupted, and by however many processes it was made, as long as each
    has as many devices.

    Args:
      source: the images; see `flax_vae.images` for what is read.
      destination: the data set; see `convert.latent_index`.
      model: the autoencoder, with the `dtype` that `encoding` names.
      params: its parameters; those of the decoder may be missing.
      encoding: see `encoding_of`.
      grouping: how images are put together; None takes the defaults.
      skip_bad: images that may be passed over because they cannot be read; one more ends the call.
      force: remove what an earlier start has written to `destination`; for one process alone.
      process: which of several processes this is, from 0: it computes every `processes`-th shard.
      processes: how many there are.
      devices: `jax.Device`s of this process; None takes all.

    Raises:
      UserError: if `source` holds no images or too many bad ones, if `destination` holds something else, was begun
        otherwise or is being written by somebody else, or if a latent is not finite.
      OSError: if a shard cannot be written, as on a full disk.
    """
    if not 0 <= process < processes:
        raise UserError(f"process={process} of processes={processes} must be from 0 to {processes - 1}")
    if force and processes > 1:
        raise UserError("one of several processes would remove what the others have written; remove the folder first")
    grouping = grouping or Grouping()
    found = scan(source)
    skips = Skips(skip_bad)
    for _, reason in found.bad:
        skips.add(reason)
    if not found.pictures:
        raise UserError(f"none of the {len(found.bad)} images in {printable(source)} can be read")
    shards = group(found.pictures, encoding.multiple, grouping)
    plan = plan_of(found, encoding, grouping)
    with held(destination, shared=processes > 1):
        if force:
            clear(destination, _OURS)
        begin(destination, PLAN, plan, "give the same again, choose another folder, or begin anew with --force")
        mine = shards[process::processes]
        clean(destination, _OURS if processes == 1 else _named(mine))
        data_set = _DataSet(destination, plan_sha256(plan), shards)
        done = data_set.whole(mine)
        for reason in (reason for notes in done.values() for _, reason in notes.skipped):
            skips.add(reason)
        todo = [shard for shard in mine if shard.number not in done]
        begun, computing = time.monotonic(), 0.0
        if todo:
            (destination / INDEX).unlink(missing_ok=True)  # where a shard was lost: it is complete no longer
            encoder = LatentEncoder(model, params, encoding, jax.local_devices() if devices is None else devices)
            run = Pipeline(found.folder, encoding, grouping.max_pixels, encoder, data_set.write, skips)
            with Progress(_images(mine), _images(mine) - _images(todo)) as progress:
                computing = run(todo, progress).busy
        seconds = time.monotonic() - begun
        there = data_set.whole(shards)
        if len(there) == len(shards) and (todo or not (destination / INDEX).exists()):
            data_set.complete(found, encoding, list(there.values()))
    return EncodeReport(
        images=_images(todo),
        entries=sum(notes.record.entries for notes in there.values()),
        shards=len(there),
        missing=len(shards) - len(there),
        skipped=skips.count,
        seconds=seconds,
        computing=computing / max(seconds, 1e-9),
    )


def encoding_of(model: AutoEncoder, params: dict[str, Any], **settings: Any) -> Encoding:
    """The record of how this model encodes.

    Args:
      model: the autoencoder; its `dtype` must be said.
      params: its parameters.
      settings: further fields of `Encoding`; without `multiple`, images are padded to multiples of the model's factor.

    Raises:
      UserError: if the model does not take RGB, or `multiple` is no multiple of its factor.
      ValueError: if the model's dtype is not said.
    """
    record = model.params
    if record.in_channels != 3:
        raise UserError(f"the model takes images of {record.in_channels} channels; image files are read as RGB")
    multiple = settings.pop("multiple", None) or record.factor
    if multiple < 1 or multiple % record.factor:
        raise UserError(f"multiple={multiple} must be a multiple of {record.factor}, the model's factor")
    if model.dtype is None:
        raise ValueError("the model follows the dtype of its inputs; load it with dtype=jnp.float32 or jnp.bfloat16")
    compute = np.dtype(model.dtype).name
    return Encoding(weights_sha256(params, DECODES), record, compute_dtype=compute, multiple=multiple, **settings)


def plan_of(found: Scan, encoding: Encoding, grouping: Grouping) -> dict[str, Any]:
    """What a data set is to become, as `plan.json` says it."""
    images = {"count": len(found.pictures) + len(found.bad), "sha256": found.sha256}
    return {"format": 1, "images": images, "encoding": encoding.to_dict(), "grouping": asdict(grouping)}


@dataclass(frozen=True)
class _DataSet:
    """The shards of a plan, in a folder."""

    folder: Path
    plan: str
    shards: Sequence[Shard]

    def whole(self, shards: Sequence[Shard]) -> dict[int, ShardNotes]:
        """Those that are there; one that is damaged is as good as missing."""
        found = {}
        for shard in shards:
            with contextlib.suppress(FileNotFoundError, FileError):
                notes = read_notes(self.folder / shard_file(shard.number))
                if notes.plan == self.plan:
                    found[shard.number] = notes
        return found

    def write(self, number: int, content: ShardContent) -> None:
        """Writes one."""
        write_shard(self.folder, number, content, self.plan)

    def complete(self, found: Scan, encoding: Encoding, notes: list[ShardNotes]) -> None:
        """Writes what is told of all shards together; the index last."""
        skipped = [*found.bad, *(skip for note in notes for skip in note.skipped)]
        if skipped:
            lines = [json.dumps({"name": name, "reason": reason}) for name, reason in sorted(skipped)]
            self._write(SKIPPED, "\n".join(lines) + "\n")
        record = encoding.architecture
        factors = (record.scale_factor, record.shift_factor) if encoding.scaled else (1.0, 0.0)
        try:
            statistics = LatentStatistics.of(
                (note.moments for note in notes),
                encoding.channels,
                scaled=encoding.scaled,
                factors=factors if record.latent_norm == "scale" else None,
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        self._write(STATISTICS, json.dumps(statistics.to_dict(), indent=2) + "\n")
        records = tuple(note.record for note in notes)
        entries, images = sum(record.entries for record in records), len(found.pictures) + len(found.bad) - len(skipped)
        write_index(self.folder, LatentIndex(encoding, entries, images, len(skipped), records))

    def _write(self, name: str, text: str) -> None:
        with new_file(self.folder / name, force=True) as file:
            file.write_text(text, encoding="utf-8")


def _named(shards: Sequence[Shard]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(shard_file(shard.number)) for shard in shards) or "(?!)")


def _images(shards: Sequence[Shard]) -> int:
    return sum(shard.images for shard in shards)
