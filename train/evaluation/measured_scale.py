"""Scale and shift that were measured, into the configuration of a finished model."""

import dataclasses
from pathlib import Path

from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.convert.weights import CONFIG, WEIGHTS, read_config, write_config
from flax_vae.train.errors import TrainError
from flax_vae.train.evaluation.statistics import PosteriorSummary

_DIGITS = 6


def check_scalable(folder: Path) -> None:
    """Refuses what has no scale and shift that could be written.

    Raises:
      TrainError: if it is not a model folder of ours, or its latents are normalised in another way.
    """
    if not ((folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()):
        raise TrainError(
            f"{folder} is not a model folder, so there is no {CONFIG} to write the scale into; make one with "
            "flax-vae-convert SRC DST --to flux"
        )
    try:
        record = read_config(folder / CONFIG)
    except ValueError as error:
        raise TrainError(f"the scale is written into model folders of this package only: {error}") from error
    if record.latent_norm == "batch_norm":
        raise TrainError(
            f"{folder}: latent_norm='batch_norm' normalises latents by the statistics that are kept with the weights, "
            "not by one scale and shift; there is nothing to write"
        )


def write_scale(folder: Path, latents: PosteriorSummary) -> AutoEncoderParams:
    """Sets `scale_factor` and `shift_factor` of a model folder, to six digits.

    The weights stay as they are, and so does every reconstruction: `decode` undoes what `encode` does.  A latent that
    was stored before belongs to the old numbers.

    Returns:
      The new architecture record.

    Raises:
      TrainError: as `check_scalable`.
    """
    check_scalable(folder)
    scale, shift = (float(f"{value:.{_DIGITS}g}") for value in (latents.scale_factor, latents.shift_factor))
    record = dataclasses.replace(read_config(folder / CONFIG), scale_factor=scale, shift_factor=shift)
    try:
        write_config(folder, record)
    except ValueError as error:
        raise TrainError(f"the scale could not be written: {error}") from error
    return record
