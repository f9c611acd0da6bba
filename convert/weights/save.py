"""Weights to disk, in any layout that can be written: the counterpart of `flax_vae.convert.weights.load`."""

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flax_vae.convert.errors import ConversionError, FileError
from flax_vae.convert.files import new_folder, refuse_file_name, write_json
from flax_vae.convert.formats import Deferred, cast, is_index, read_shard_index, write_tensors
from flax_vae.convert.table import Weights
from flax_vae.convert.weights.diffusers_config import read_diffusers_config, write_diffusers_config
from flax_vae.convert.weights.folder import CONFIG, DIFFUSERS_WEIGHTS, WEIGHTS, header, save_folder
from flax_vae.convert.weights.folder import LAYOUT as FOLDER_LAYOUT

FILE_SUFFIXES = (".safetensors", ".sft")


def save_weights(
    path: str | os.PathLike[str],
    weights: Weights,
    layout: str = "flux",
    *,
    dtype: str | None = None,
    prefix: str = "",
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes weights in any layout, tensor after tensor.

    A `path` that ends in `.safetensors` or `.sft` becomes one file, whose header says the architecture.  Any other
    becomes a folder: a model folder of ours for `"flux"`, and for `"diffusers"` one that
    `AutoencoderKL.from_pretrained` (or `AutoencoderKLFlux2`) loads; the other layouts know no folders.  Names that end
    as other files do, such as `.pt`, are refused.

    Args:
      path: the file or the folder; missing folders above it are made.
      weights: what `load_weights` gives, or `Weights(tensors, layout, params)`.
      layout: one of `LAYOUTS`.
      dtype: to which floats are rounded; None keeps every bit.
      prefix: put before every name in a file, as `"first_stage_model."` in checkpoints of Stable Diffusion.
      metadata: further strings for the header of a file.
      force: whether an existing file, or a folder of the same kind, may be replaced.
      progress: called before each tensor with how many are done and how many there are.

    Raises:
      ConversionError: if the tensors are not those of the architecture; if the layout cannot express it, has no folder
        or takes no prefix; if a number is too large for `dtype`; if the name is that of another kind of file, or of a
        file that belongs to a model of several.
      FileExistsError: if it exists and `force` is not set, or is a folder with anything else in it.
      OSError: if it cannot be written, as on a full disk.
      ValueError: if there is no such layout or dtype.
    """
    target, params = Path(path), weights.params
    # What diffusers builds from is a configuration: what it cannot say must not get lost in a single file either.
    config = write_diffusers_config(params) | dict(weights.kept) if layout == "diffusers" else {}
    state_dict = weights.to(layout)
    if dtype is not None:
        state_dict = cast(state_dict, dtype)
    if progress is not None:
        state_dict = _watch(state_dict, progress)
    if target.suffix.lower() in FILE_SUFFIXES:
        _check_prefix(prefix)
        _refuse_part(target)
        entries = header(params) | dict(metadata or {})
        write_tensors(target, {prefix + key: t for key, t in state_dict.items()}, metadata=entries, force=force)
        return
    if prefix or metadata:
        raise ConversionError(
            f"{target} is to be a folder, which has no prefix and no metadata; write {target}.safetensors"
        )
    refuse_file_name(target)
    if layout == FOLDER_LAYOUT:
        save_folder(target, params, state_dict, force=force)
    elif layout == "diffusers":
        with new_folder(target, (CONFIG, DIFFUSERS_WEIGHTS), force=force) as fresh:
            write_json(fresh / CONFIG, config)
            write_tensors(fresh / DIFFUSERS_WEIGHTS, state_dict, metadata=header(read_diffusers_config(config)))
    else:
        raise ConversionError(
            f"the {layout!r} layout has no folders, only {FOLDER_LAYOUT!r} and 'diffusers' have; "
            f"call the file {target}{FILE_SUFFIXES[0]}"
        )


def _watch(tensors: Mapping[str, Any], progress: Callable[[int, int], None]) -> dict[str, Deferred]:
    done: list[str] = []

    def make(name: str) -> np.ndarray:
        progress(len(done), len(tensors))
        done.append(name)
        return np.asarray(tensors[name])

    return {name: Deferred(tuple(t.shape), np.dtype(t.dtype), lambda n=name: make(n)) for name, t in tensors.items()}


def _refuse_part(target: Path) -> None:
    """Refuses to replace a file that would no longer fit the configuration or the index beside it."""
    real = target.resolve()
    if not real.exists():
        return
    if (real.parent / CONFIG).is_file() and (real.name == WEIGHTS or real.name.startswith("diffusion_")):
        raise ConversionError(
            f"{target} belongs to the {CONFIG} beside it; give the folder {target.parent}, or another name"
        )
    for index in filter(lambda entry: is_index(entry.name), real.parent.iterdir()):
        with contextlib.suppress(FileError):
            if real.name in read_shard_index(index).values():
                raise ConversionError(f"{target} is one of the shards of {index.name}; choose another name")


def _check_prefix(prefix: str) -> None:
    """Refuses what could not be read again."""
    if not re.fullmatch(r"([\w-]+\.)*", prefix):
        raise ConversionError(f"prefix={prefix!r} is none; write names that each end in a dot, as first_stage_model.")
