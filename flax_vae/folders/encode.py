"""Images to latent data sets: planned, computed shard by shard, resumed, put together.

A shard appears under its name only when it is whole, so whatever ends a process leaves whole shards; the next start
computes those that are missing.  Of those that are there it reads the source images again, all of their bytes, and
compares their SHA-256 with what was encoded: an image that was edited under its name ends the start.  Several
processes share the shards out by their numbers and never speak to each other: whoever finds that all are there writes
the statistics and the index, and if two do at once, they write the same bytes.
"""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flax_vae.autoencoder import AutoEncoder
from flax_vae.convert.console import Progress
from flax_vae.convert.errors import ArgumentError
from flax_vae.convert.files import remove_content
from flax_vae.convert.latents import Encoding, shard_file
from flax_vae.errors import UserError
from flax_vae.folders.batch_encoder import LatentEncoder, weights_sha256
from flax_vae.folders.batches import BatchLimits, Shard, programs
from flax_vae.folders.data_set import OURS, DataSet
from flax_vae.folders.output_folder import clean, continued, held, replaced
from flax_vae.folders.pipeline import EncodePipeline, Skips
from flax_vae.images import StorageError, open_images, scan_images
from flax_vae.inference import DECODES


@dataclass(frozen=True)
class EncodeReport:
    """What a call has done.

    Attributes:
      found: Images at the address.
      images: Images that this call encoded; 0 where nothing was left to do.
      encoded: Images whose latents are there, from this call or another.
      entries: latents in the shards that are there.
      shards: Shards that are there.
      missing: Shards that other processes have not written yet; without any the data set is complete.
      skipped: Images that were passed over, as far as they are known.
      seconds: Duration of encoding, without loading the model.
      computing: Share of `seconds` in which the devices had a batch to compute, compiling included.
      damaged: Names of shards that were damaged, or made by another run, and were encoded again.
    """

    found: int
    images: int
    encoded: int
    entries: int
    shards: int
    missing: int
    skipped: int
    seconds: float
    computing: float
    damaged: tuple[str, ...] = ()


def encode_folder(
    source: str | os.PathLike[str],
    destination: Path,
    model: AutoEncoder,
    params: dict[str, Any],
    encoding: Encoding,
    grouping: BatchLimits | None = None,
    *,
    skip_bad: int = 0,
    append: bool = False,
    force: bool = False,
    process: int = 0,
    processes: int = 1,
    devices: Sequence[Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> EncodeReport:
    """Encodes all images at an address into a latent data set, or continues one that was begun.

    The result depends on the images, the weights, `encoding` and `grouping` alone: on one kind of machine it is the
    same to the last bit however often it was interrupted, and by however many processes it was made, as long as each
    has as many devices.

    Args:
      source: Address of the images; see `flax_vae.images.open_images`.
      destination: Folder of the data set; see `flax_vae.convert.latents.index`.
      model: Autoencoder with the `dtype` of `encoding`.
      params: Parameters of the model; those of the decoder may be missing.
      encoding: Settings of the encoding; see `encoding_of`.
      grouping: Limits of batches and shards; None takes the defaults.
      skip_bad: Images that may be passed over because they cannot be read; one more ends the call.
      append: Whether images that the source has gained since the first start are encoded too, into new shards; the
        earlier shards are not touched.  Until it is complete, readers see the data set without the new images.
      force: Whether to replace what an earlier start has written to `destination`, for one process alone.  It stays
        there until the new data set is complete.
      process: Number of this process, from 0: it computes every `processes`-th shard.
      processes: Number of processes.
      devices: `jax.Device`s of this process; None takes all.
      tell: Called with each line on what was found and what is compiled, before anything is computed.

    Raises:
      UserError: If `source` holds no images or too many bad ones, if images that were encoded are gone or changed, if
        `destination` holds something else, was begun otherwise or is being written by somebody else, or if a latent is
        not finite.
      OSError: If a shard cannot be written, as on a full disk.
    """
    if not 0 <= process < processes:
        raise UserError(f"process={process} of processes={processes} must be from 0 to {processes - 1}")
    if force and processes > 1:
        raise UserError("one of several processes would remove what the others have written; remove the folder first")
    if force and append:
        raise UserError("append= (--append) keeps the latents that are there and force= (--force) does not; give one")
    grouping = grouping or BatchLimits()
    found = scan_images(open_images(os.fspath(source)))
    skips = Skips(skip_bad)
    skips.add(*found.reasons)
    if not found.sizes:
        raise UserError(f"none of the {len(found.errors)} images in {found.source.where} can be read")
    place = replaced(destination, OURS) if force else continued(destination)
    with held(destination, shared=processes > 1), place as folder:
        try:
            data_set = DataSet.begin(folder, found, encoding, grouping, append)
            mine = data_set.shards[process::processes]
            done, damaged = data_set.intact(mine, found)
        except StorageError:
            raise
        except UserError:
            if folder == destination:
                raise
            remove_content(folder)  # an earlier --force, of something else, that was not finished
            data_set = DataSet.begin(folder, found, encoding, grouping, append)
            mine, done, damaged = data_set.shards, {}, ()
        clean(folder, OURS if processes == 1 else _named(mine))
        for reason in (skip.reason for notes in done.values() for skip in notes.skipped):
            skips.add(reason)
        todo = [shard for shard in mine if shard.number not in done]
        begun, computing = time.monotonic(), 0.0
        for line in (*found.source.notes, *programs(todo, encoding.multiple)):
            tell(line)
        if todo:
            data_set.withdraw_index(todo)
            encoder = LatentEncoder(model, params, encoding, jax.local_devices() if devices is None else devices)
            run = EncodePipeline(found, encoding, grouping.max_pixels, encoder, data_set.write, skips)
            with Progress(_images(mine), _images(mine) - _images(todo)) as progress:
                computing = run(todo, progress).busy
        seconds = time.monotonic() - begun
        there = data_set.whole(data_set.shards)
        passed_over = {shard: len(notes.skipped) for shard, notes in there.items()}
        if len(there) == len(data_set.shards):
            data_set.complete(found, encoding, list(there.values()))
    return EncodeReport(
        found=len(found.source),
        images=_images(todo) - sum(passed_over.get(shard.number, 0) for shard in todo),
        encoded=sum(shard.images - passed_over[shard.number] for shard in data_set.shards if shard.number in there),
        entries=sum(notes.record.entries for notes in there.values()),
        shards=len(there),
        missing=len(data_set.shards) - len(there),
        skipped=len(found.errors) + sum(passed_over.values()),
        seconds=seconds,
        computing=computing / max(seconds, 1e-9),
        damaged=damaged,
    )


def encoding_of(model: AutoEncoder, params: dict[str, Any], **settings: Any) -> Encoding:
    """The record of how this model encodes.

    Args:
      model: Autoencoder with an explicit `dtype`.
      params: Parameters of the model.
      settings: Further fields of `Encoding`; without `multiple`, images are padded to multiples of the model's factor.

    Raises:
      UserError: If the model does not take RGB, or `multiple` is not a multiple of its factor.
      ValueError: If the model has no explicit dtype.
    """
    record = model.params
    if record.in_channels != 3:
        raise UserError(f"the model takes images of {record.in_channels} channels; image files are read as RGB")
    multiple = settings.pop("multiple", None) or record.factor
    if multiple < 1 or multiple % record.factor:
        raise UserError(f"multiple={multiple} must be a multiple of {record.factor}, the model's factor")
    if model.dtype is None:
        raise ArgumentError("the model follows the dtype of its inputs; load it with dtype=jnp.float32 or jnp.bfloat16")
    compute = np.dtype(model.dtype).name
    return Encoding(weights_sha256(params, DECODES), record, compute_dtype=compute, multiple=multiple, **settings)


def _named(shards: Sequence[Shard]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(shard_file(shard.number)) for shard in shards) or "(?!)")


def _images(shards: Sequence[Shard]) -> int:
    return sum(shard.images for shard in shards)
