"""Decodes latent data sets to folders of images with their original names."""

import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np

from flax_vae.autoencoder import Model
from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.convert.console import Progress
from flax_vae.convert.files import Place, as_path, list_at
from flax_vae.convert.latents import Encoding, LatentDataset, LatentIndex
from flax_vae.errors import UserError
from flax_vae.folders.batch_decoder import BatchDecoder, DecodePipeline
from flax_vae.folders.batch_encoder import weights_sha256
from flax_vae.folders.batches import BatchLimits, ImageEntry, plan_shards
from flax_vae.folders.file_names import target_names
from flax_vae.folders.output_folder import locked, remove_partial_files, write_or_check_plan
from flax_vae.inference import DECODER_PARAMS, ENCODER_PARAMS

PLAN = ".decode.json"  # hidden, because the folder holds images
_OURS = re.compile(r".*\.png|\.decode\.json", re.DOTALL)


@dataclass(frozen=True)
class DecodeReport:
    """Summary of a call of `decode_folder`.

    Attributes:
      images: Number of images in the folder.
      decoded: Number of images written by this call.
      seconds: Duration without loading the model.
    """

    images: int
    decoded: int
    seconds: float


def decode_folder(
    source: Place,
    destination: Place,
    model: Model,
    params: dict[str, Any],
    grouping: BatchLimits | None = None,
    *,
    other_model: bool = False,
    devices: Sequence[Any] | None = None,
) -> DecodeReport:
    """Decodes a latent data set to PNG files, or resumes decoding.

    Images keep their sizes, sub-folders and names, with the ending `.png`; see `flax_vae.folders.file_names` for names
    that have to change.  Mirror images are left out.  A file appears under its name only when it is complete; complete
    files are not decoded again.

    Args:
      source: Folder of the data set, or its address in a bucket.
      destination: Folder for the images, or its address in a bucket.
      model: Autoencoder.
      params: Parameters of the model.
      grouping: Limits of a batch; an image of more than `max_pixels` is decoded band by band.
      other_model: Whether to accept a model other than the one that encoded the latents.
      devices: `jax.Device`s of this process; None takes all.

    Returns:
      Counts of images, and the duration.

    Raises:
      FileNotFoundError: If `source` is not a complete latent data set.
      FileError: If it is damaged, or names files outside the folder.
      UserError: If another model encoded the latents, or if `destination` holds other files, was started with other
        settings or is being written by another process.
      AddressError: If a bucket cannot be reached.
      OSError: If an image cannot be written, for example because the disk is full.
    """
    grouping = grouping or BatchLimits()
    latents = LatentDataset(source, dtype=None, verify=True)
    encoding = latents.index.encoding
    _check_model(model, params, encoding, source, other_model)
    pictures = _pictures(latents)
    names = target_names([picture.name for picture in pictures])
    targets = dict(zip((picture.number for picture in pictures), names, strict=True))
    plan = {
        "latents": _index_sha256(latents.index),
        "decoder_sha256": weights_sha256(params, ENCODER_PARAMS),
        "compute_dtype": "as the weights" if model.dtype is None else np.dtype(model.dtype).name,
        "grouping": {name: value for name, value in asdict(grouping).items() if name != "shard_size"},
    }
    folder = as_path(destination)
    with locked(folder):
        write_or_check_plan(folder, PLAN, plan, "give the same again, or choose another folder")
        remove_partial_files(folder, _OURS)
        present = {entry.name for entry in list_at(folder, recursive=True)}
        missing = {number for number, target in targets.items() if str(target) not in present}
        batches = [batch for shard in plan_shards(pictures, encoding.multiple, grouping) for batch in shard.batches]
        # Complete batches, because results of other batch sizes may differ in the last bits.
        todo = [batch for batch in batches if any(picture.number in missing for picture in batch.pictures)]
        begun = time.monotonic()
        if todo:
            decoder = BatchDecoder(model, params, encoding, jax.local_devices() if devices is None else devices)
            run = DecodePipeline(latents, decoder, grouping.max_pixels, folder, targets, missing)
            with Progress(len(pictures), len(pictures) - len(missing)) as progress:
                run(todo, progress)
    return DecodeReport(len(pictures), len(missing), time.monotonic() - begun)


def _pictures(latents: LatentDataset) -> list[ImageEntry]:
    """Returns all entries except mirror images; their number is the position in the data set."""
    entries = ((position, latents[position]) for position in range(len(latents)))
    return [
        ImageEntry(position, entry["name"], entry["height"], entry["width"])
        for position, entry in entries
        if not entry["flipped"]
    ]


def _index_sha256(index: LatentIndex) -> str:
    parts = [index.encoding.to_dict(), [shard.data_sha256 for shard in index.shards]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _check_model(model: Model, params: dict[str, Any], encoding: Encoding, source: Place, other_model: bool) -> None:
    if model.params.out_ch != 3:
        raise UserError(f"the model gives images of {model.params.out_ch} channels; image files are written as RGB")
    theirs, ours = encoding.architecture, model.params
    if (theirs.factor, theirs.latent_channels) != (ours.factor, ours.latent_channels):
        raise UserError(
            f"the latents in {source} have {theirs.latent_channels} channels and factor {theirs.factor}, those of the "
            f"model {ours.latent_channels} and {ours.factor}; give the model that encoded them"
        )
    if not encoding.scaled and not ours.has_posterior:
        raise UserError(
            f"{source} holds moments, and {ours.described} decodes latents as the diffusion model sees them; encode "
            "with --store mean"
        )
    if other_model:
        return
    if isinstance(theirs, AutoEncoderParams) and isinstance(ours, AutoEncoderParams):
        theirs = replace(theirs, clamp_logvar=ours.clamp_logvar)  # on which decoding does not depend
    if theirs != ours or encoding.encoder_sha256 != weights_sha256(params, DECODER_PARAMS):
        raise UserError(
            f"another model encoded the latents in {source}; give that one, or --other-model to decode them with this"
        )
