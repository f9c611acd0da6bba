"""Encodes images to latent data sets, shard by shard and resumable.

A shard appears under its name only when it is complete, so an interrupted process leaves complete shards; the next
start computes the missing ones.  For existing shards it reads the source images again and compares their SHA-256 with
that of the encoded ones; an image that was edited ends the start.  Several processes divide the shards by their
numbers and do not communicate.  A process that finds all shards writes the statistics and the index; if two do so at
once, they write equal bytes.
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

from flax_vae.autoencoder import Model
from flax_vae.convert.console import Progress, printable
from flax_vae.convert.errors import ArgumentError
from flax_vae.convert.files import Place, address_of, as_path, is_address, remove_content
from flax_vae.convert.latents import Encoding, ShardStorage, Storage, shard_storage
from flax_vae.errors import UserError
from flax_vae.folders.batch_encoder import LatentEncoder, weights_sha256
from flax_vae.folders.batches import BatchLimits, Shard, programs
from flax_vae.folders.data_set import OURS, SIGNS, DataSet
from flax_vae.folders.output_folder import continued, locked, remove_partial_files, replaced
from flax_vae.folders.pipeline import BusyTime, EncodePipeline, Skips
from flax_vae.images import ResizedSource, StorageError, open_images, scan_images
from flax_vae.inference import DECODER_PARAMS


@dataclass(frozen=True)
class EncodeReport:
    """Summary of a call of `encode_folder`.

    Attributes:
      found: Number of images at the address.
      images: Number of images encoded by this call; 0 if the data set was complete.
      encoded: Number of images whose latents exist, from this call or others.
      entries: Number of latents in the existing shards.
      shards: Number of existing shards.
      missing: Number of shards that other processes have not written yet; 0 if the data set is complete.
      skipped: Number of skipped images, as far as known.
      seconds: Duration of encoding, without loading the model.
      computing: Fraction of `seconds` in which the devices had a batch to compute whose program was compiled.
      compiling: Seconds that tracing and compiling took; the devices may compute another batch meanwhile.
      damaged: Names of shards that were damaged, or written by another run, and were encoded again.
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
    compiling: float
    damaged: tuple[str, ...] = ()


def encode_folder(
    source: str | os.PathLike[str],
    destination: Place,
    model: Model,
    params: dict[str, Any],
    encoding: Encoding,
    grouping: BatchLimits | None = None,
    *,
    storage: Storage = "safetensors",
    skip_bad: int = 0,
    append: bool = False,
    force: bool = False,
    process: int = 0,
    processes: int = 1,
    devices: Sequence[Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> EncodeReport:
    """Encodes all images at an address into a latent data set, or resumes encoding.

    The result depends only on the images, the weights, `encoding` and `grouping`.  On one kind of machine it is equal
    bit for bit, however often encoding was interrupted and whatever the number of processes, if each has as many
    devices.

    Args:
      source: Address of the images; see `flax_vae.images.open_images`.
      destination: Folder of the data set, or its address in a bucket; see `flax_vae.convert.latents.index`.
      model: Autoencoder with the `dtype` of `encoding`.
      params: Parameters of the model; those of the decoder may be missing.
      encoding: Settings of the encoding; see `encoding_of`.
      grouping: Limits of batches and shards; None takes the defaults.
      storage: Format of the files: `"safetensors"`, which `LatentDataset` reads and `decode_folder` decodes;
        `"arrayrecord"`, `"npz"` or `"pt"`, see `flax_vae.convert.latents.formats`.
      skip_bad: Number of images that may be skipped because they cannot be read; one more ends the call.
      append: Whether to encode images that were added to the source since the first start, into new shards; existing
        shards stay unchanged.  Until it is complete, readers use the data set without the new images.
      force: Whether to replace the data set in `destination`; for a single process and a local folder only.  The old
        data set stays there until the new one is complete.
      process: Index of this process, from 0; it computes every `processes`-th shard.
      processes: Number of processes.
      devices: `jax.Device`s of this process; None uses all.
      tell: Function that prints a line on the images found and the sizes compiled, before anything is computed.

    Returns:
      Counts of images and shards, and durations.

    Raises:
      UserError: If `source` holds no images or too many damaged ones, encoded images were removed or changed,
        `destination` is in `source`, holds other files, was started with other settings or is being written by another
        process, or a latent is not finite.
      ArgumentError: If `storage` is unknown, or cannot hold the dtype of `encoding`.
      AddressError: If a bucket cannot be reached.
      OSError: If a shard cannot be written, for example because the disk is full.
    """
    target = as_path(destination)
    shards = shard_storage(storage, destination)
    shards.require(encoding.dtype)
    if not 0 <= process < processes:
        raise UserError(f"process={process} of processes={processes} must be from 0 to {processes - 1}")
    if force and processes > 1:
        raise UserError(f"force= (--force) needs a single process, not {processes}; remove the folder instead")
    if force and append:
        raise UserError(
            "append= (--append) keeps existing latents and force= (--force) replaces them; pass one of them"
        )
    _require_apart(os.fspath(source), target)
    grouping = grouping or BatchLimits()
    images = open_images(os.fspath(source))
    found = scan_images(images if encoding.resize is None else ResizedSource(images, encoding.resize, encoding.crop))
    skips = Skips(skip_bad)
    skips.add(*found.reasons)
    if not found.sizes:
        raise UserError(
            f"none of the {len(found.errors)} images in {found.source.where} can be read; expected valid images"
        )
    place = replaced(target, OURS, SIGNS) if force else continued(target)
    with locked(target, member=process if processes > 1 else None), place as folder:
        try:
            data_set = DataSet.begin(folder, found, encoding, grouping, shards, append)
            mine = data_set.shards[process::processes]
            done, damaged = data_set.intact(mine, found)
        except StorageError:
            raise
        except UserError:
            if folder == target:
                raise
            remove_content(folder)  # left by an unfinished --force with other settings
            data_set = DataSet.begin(folder, found, encoding, grouping, shards, append)
            mine, done, damaged = data_set.shards, {}, ()
        remove_partial_files(folder, OURS if processes == 1 else _named(shards, mine))
        for reason in (skip.reason for notes in done.values() for skip in notes.skipped):
            skips.add(reason)
        todo = [shard for shard in mine if shard.number not in done]
        begun, busy_time = time.monotonic(), BusyTime()
        for line in (*found.source.notes, *found.source.label_notes, *programs(todo, encoding.multiple)):
            tell(line)
        if todo:
            data_set.withdraw_index(todo)
            encoder = LatentEncoder(model, params, encoding, jax.local_devices() if devices is None else devices)
            run = EncodePipeline(found, encoding, grouping.max_pixels, encoder, data_set.write, skips)
            with Progress(_images(mine), _images(mine) - _images(todo)) as progress:
                busy_time = run(todo, progress)
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
        computing=busy_time.busy / max(seconds, 1e-9),
        compiling=busy_time.compiling,
        damaged=damaged,
    )


def encoding_of(model: Model, params: dict[str, Any], **settings: Any) -> Encoding:
    """Returns the settings of encoding with this model.

    Args:
      model: Autoencoder with an explicit `dtype`.
      params: Parameters of the model.
      settings: Further fields of `Encoding`; without `multiple`, images are padded to multiples of the model's factor.

    Raises:
      UserError: If the model does not take RGB, or `multiple` is not a multiple of its factor.
      ValueError: If the model has no explicit dtype.
    """
    architecture = model.params
    if architecture.in_channels != 3:
        raise UserError(
            f"the model takes images of {architecture.in_channels} channels; expected 3, because files are read as RGB"
        )
    multiple = settings.pop("multiple", None) or architecture.factor
    if multiple < 1 or multiple % architecture.factor:
        raise UserError(f"multiple={multiple} must be a multiple of {architecture.factor}, the model's factor")
    if model.dtype is None:
        raise ArgumentError("the model has dtype=None; expected an explicit dtype, jnp.float32 or jnp.bfloat16")
    if not architecture.has_posterior and settings.get("store", "mean") != "mean":
        raise UserError(
            f"store={settings['store']!r} needs a posterior, which {architecture.described} does not have; use 'mean' "
            "(--store mean), which stores the latent that the encoder gives"
        )
    compute = np.dtype(model.dtype).name
    return Encoding(
        weights_sha256(params, DECODER_PARAMS), architecture, compute_dtype=compute, multiple=multiple, **settings
    )


def _require_apart(source: str, target: Path) -> None:
    """Refuses a destination in the folder of the images, where it would be numbered as a class by the next start."""
    if is_address(source):
        inside = address_of(target).startswith(f"{source.rstrip('/')}/")
    else:
        folder = Path(source).resolve()
        inside = not is_address(target) and not target.is_file() and folder in target.resolve().parents
    if inside:
        raise UserError(
            f"{printable(address_of(target))} is in {printable(source)}, whose folders are the classes of its images; "
            "choose a folder outside, or move the latents there",
            path=target,
        )


def _named(storage: ShardStorage, shards: Sequence[Shard]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(storage.file(shard.number)) for shard in shards) or "(?!)")


def _images(shards: Sequence[Shard]) -> int:
    return sum(shard.images for shard in shards)
