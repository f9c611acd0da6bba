"""Writes measured scale and shift factors into the config of a model folder."""

import dataclasses
from pathlib import Path

from flax_vae.convert.architecture import AutoEncoderParams, require_posterior
from flax_vae.convert.errors import FlaxVaeError
from flax_vae.convert.weights import CONFIG, WEIGHTS, read_config, write_config
from flax_vae.train.errors import TrainError
from flax_vae.train.evaluation.statistics import PosteriorSummary

_DIGITS = 6


def check_scalable(folder: Path) -> None:
    """Checks that a model folder has a scale and a shift to write.

    Raises:
      TrainError: If it is not a model folder of this package, or its latents are normalised by statistics per channel.
    """
    if not ((folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()):
        raise TrainError(
            f"{folder} is not a model folder; expected one with {CONFIG} to write the scale into: make it with "
            "flax-vae-convert SRC DST --to flux"
        )
    try:
        params = require_posterior(read_config(folder / CONFIG))
    except FlaxVaeError as error:
        raise TrainError(f"the scale is written into model folders of this package only: {error}") from error
    if params.normalises_channels:
        raise TrainError(
            f"{folder}: latent_norm={params.latent_norm!r}, latent_mean={params.latent_mean!r} normalise each channel "
            "by statistics that are kept with the weights or in the configuration, not by one scale and shift; leave "
            "out --write-scale"
        )


def write_scale(folder: Path, latents: PosteriorSummary) -> AutoEncoderParams:
    """Sets `scale_factor` and `shift_factor` of a model folder, to six digits.

    Weights and reconstructions do not change, because `decode` inverts the scaling of `encode`.  Latents that were
    stored before need the old factors.

    Returns:
      The new architecture.

    Raises:
      TrainError: If the folder has no scale to write, see `check_scalable`, or cannot be written.
    """
    check_scalable(folder)
    scale, shift = (float(f"{value:.{_DIGITS}g}") for value in (latents.scale_factor, latents.shift_factor))
    params = dataclasses.replace(
        require_posterior(read_config(folder / CONFIG)), scale_factor=scale, shift_factor=shift
    )
    try:
        write_config(folder, params)
    except FlaxVaeError as error:
        raise TrainError(f"the scale could not be written: {error}") from error
    return params
