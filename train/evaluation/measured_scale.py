"""Writes measured scale, shift and statistics of latents into the config of a model folder."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from flax_vae.convert.architecture import Architecture, AutoEncoderParams, require_posterior
from flax_vae.convert.errors import FlaxVaeError
from flax_vae.convert.weights import (
    CONFIG,
    DIFFUSERS_WEIGHTS,
    WEIGHTS,
    is_own_config,
    read_any_config,
    read_config,
    write_config,
)
from flax_vae.train.errors import TrainError
from flax_vae.train.evaluation.statistics import PosteriorSummary

_DIGITS = 6

P = TypeVar("P", bound=Architecture)


def check_scalable(folder: Path) -> None:
    """Checks that a model folder has a scale and a shift to write.

    Args:
      folder: Model folder.

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

    Args:
      folder: Model folder.
      latents: Statistics of the posteriors.

    Returns:
      The new architecture.

    Raises:
      TrainError: If the folder has no scale to write, see `check_scalable`, or cannot be written.
    """
    check_scalable(folder)
    scale, shift = (float(f"{value:.{_DIGITS}g}") for value in (latents.scale_factor, latents.shift_factor))
    return _write(folder, require_posterior(read_config(folder / CONFIG)), scale_factor=scale, shift_factor=shift)


def check_normalisable(folder: Path) -> None:
    """Checks that statistics of each channel can be written into a folder.

    Args:
      folder: Model folder.

    Raises:
      TrainError: If it is a model folder neither of this package nor of diffusers, or keeps statistics with its weights
        (FLUX.2).
    """
    own = not (folder / CONFIG).is_file() or is_own_config(folder / CONFIG)
    if not ((folder / CONFIG).is_file() and (folder / (WEIGHTS if own else DIFFUSERS_WEIGHTS)).is_file()):
        raise TrainError(
            f"{folder} is not a model folder; expected {CONFIG} to write the statistics into, beside {WEIGHTS} or "
            f"{DIFFUSERS_WEIGHTS}: make it with flax-vae-convert SRC DST --to flux, or --to diffusers"
        )
    try:
        params = read_any_config(folder / CONFIG)
    except FlaxVaeError as error:
        raise TrainError(str(error)) from error
    if isinstance(params, AutoEncoderParams) and params.latent_norm == "batch_norm":
        raise TrainError(
            f"{folder}: latent_norm='batch_norm' normalises each channel by statistics that are kept with the weights, "
            f"not in {CONFIG}; leave out --write-statistics"
        )


def write_statistics(folder: Path, latents: PosteriorSummary) -> Architecture:
    """Sets `latent_mean` and `latent_std` of a model folder, in a folder of diffusers `latents_mean` and `latents_std`.

    Afterwards `encode` returns latents of which each channel has mean 0, and the scale of the model as its deviation.
    A model without statistics has a scale of 1 and a shift of 0 from then on; one that has statistics keeps its scale.
    In a folder of diffusers, `scaling_factor` and `shift_factor` stay as they are where statistics stand in their
    place.

    Weights and reconstructions do not change, because `decode` inverts the normalisation of `encode`.  Latents that
    were stored before, and diffusion models trained on them, need the old configuration.

    Args:
      folder: Model folder.
      latents: Statistics of the posteriors.

    Returns:
      The new architecture.

    Raises:
      TrainError: If the folder takes no statistics, see `check_normalisable`, if a channel is constant, or if the
        folder cannot be written.
    """
    check_normalisable(folder)
    params = read_any_config(folder / CONFIG)
    fields: dict[str, Any] = {"latent_mean": tuple(latents.channel_mean), "latent_std": tuple(latents.channel_std)}
    if isinstance(params, AutoEncoderParams) and not params.normalises_channels:
        fields |= {"scale_factor": 1.0, "shift_factor": 0.0}
    return _write(folder, params, **fields)


def _write(folder: Path, params: P, **fields: Any) -> P:
    """Writes an architecture with new values of some fields; returns it."""
    try:
        params = dataclasses.replace(params, **fields)
        write_config(folder, params)
    except FlaxVaeError as error:
        raise TrainError(f"{folder / CONFIG} could not be written: {error}") from error
    return params
