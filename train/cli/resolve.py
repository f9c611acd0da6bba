"""Resolves the settings of a run from flags, files and the run directory."""

import dataclasses
from pathlib import Path
from typing import Any

from flax_vae.convert.architecture import (
    FAMILY,
    LATER_FIELDS,
    Architecture,
    AutoEncoderParams,
    architecture_from_dict,
    require_posterior,
)
from flax_vae.convert.errors import ArgumentError, FlaxVaeError
from flax_vae.convert.weights import load_weights
from flax_vae.train.cli.flags import Flags
from flax_vae.train.cli.settings_file import PRESET, merge, read_settings
from flax_vae.train.config import TrainConfig, architecture, default, fine_tuning_recipe, recipe
from flax_vae.train.errors import RunError, TrainError
from flax_vae.train.run import RunDirectory


def resolve(flags: Flags, workdir: Path | None) -> TrainConfig:
    """Returns the settings of a run.

    The recipe of the preset is overridden by the settings of a run that is resumed, those by `--config`, and those by
    flags.

    Args:
      flags: Flags of the command.
      workdir: Run directory; None if no run is resumed.

    Raises:
      TrainError: If the directory holds something else, or a file cannot be used.
      ArgumentError: If a value is out of range, or a name unknown.
    """
    file = {} if flags.run.config is None else read_settings(flags.run.config)
    named = file.pop(PRESET, None)
    asked = flags.settings
    model = file.get("model", {})
    given = merge(file, asked)
    base = _base(flags.run.preset or named, given.get("start_from"), given.get("teacher"), model, workdir).to_dict()
    # A whole architecture replaces the other one: fields that it leaves out have their defaults.
    below = _over(base | {"model": {}} if _is_whole(model) else base, file)
    try:
        return TrainConfig.from_dict(_over(below, asked))
    except ArgumentError as error:
        if flags.run.config is not None and str(error) == _fault(below):
            raise TrainError(f"{flags.run.config}: {error}", path=flags.run.config, field=error.field) from error
        raise


def default_workdir(flags: Flags) -> Path:
    """Returns the run directory if none is given: below `runs`, named after the preset, the settings or the weights.

    Raises:
      TrainError: If the file of settings cannot be used.
    """
    file = {} if flags.run.config is None else read_settings(flags.run.config)
    start_from = flags.settings.get("start_from", flags.settings.get("teacher"))
    start = None if start_from is None else Path(start_from).stem
    return Path("runs") / (
        flags.run.preset or file.get(PRESET) or (flags.run.config and flags.run.config.stem) or start or "tiny"
    )


def _base(
    preset: str | None, start_from: str | None, teacher: str | None, model: dict[str, Any], workdir: Path | None
) -> TrainConfig:
    """Returns the settings that the given ones override."""
    stored = None if workdir is None else RunDirectory(workdir).stored_config()
    if stored is not None:
        # The run directory later refuses differences in architecture or initial weights, and lists them.
        if start_from is not None and stored.identity_init:
            stored = dataclasses.replace(stored, identity_init=False)
        return stored if preset is None else dataclasses.replace(stored, model=architecture(preset))
    if preset is not None:
        return recipe(preset, start_from, teacher)
    if _is_whole(model):
        return default(architecture_from_dict(model), teacher)
    if start_from is not None:
        return fine_tuning_recipe(require_posterior(_architecture_of(start_from, "start_from")), start_from)
    if teacher is not None:
        return default(_architecture_of(teacher, "teacher"), teacher)
    return recipe("tiny")


def _is_whole(model: dict[str, Any]) -> bool:
    """Returns whether settings hold all fields of an architecture that every stored one has."""
    required = {field.name for field in dataclasses.fields(AutoEncoderParams)} - set(LATER_FIELDS)
    return FAMILY in model or model.keys() >= required


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merges settings; the name of a held-out image is kept only for the same images."""
    data = above.get("data", {})
    if "folder" in data and "held_out" not in data and data["folder"] != below["data"]["folder"]:
        below = merge(below, {"data": {"held_out": None}})
    return merge(below, above)


def _fault(settings: dict[str, Any]) -> str | None:
    try:
        TrainConfig.from_dict(settings)
    except ArgumentError as error:
        return str(error)
    return None


def _architecture_of(path: str, name: str) -> Architecture:
    try:
        params = load_weights(Path(path), verify=False).params
        return params if name == "teacher" else require_posterior(params)
    except (FlaxVaeError, OSError) as error:
        raise RunError(f"{name}={path!r} cannot be loaded: {error}") from error
