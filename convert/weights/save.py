"""Saves weights in any layout that can be written; the counterpart of `flax_vae.convert.weights.load`."""

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flax_vae.convert.errors import ConversionError, FileError
from flax_vae.convert.files import atomic_folder, refuse_file_name, write_json
from flax_vae.convert.formats import Deferred, cast, is_index, read_shard_index, write_msgpack, write_tensors
from flax_vae.convert.table import PAIR_LAYOUT, Weights, split_halves, unflatten
from flax_vae.convert.weights.diffusers_config import read_diffusers_config, write_diffusers_config, write_flax_config
from flax_vae.convert.weights.folder import CONFIG, DIFFUSERS_WEIGHTS, FLAX_WEIGHTS, WEIGHTS, header, save_folder
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
    """Writes weights in any layout, one tensor after another.

    If `path` ends in `.safetensors` or `.sft`, writes one file with the architecture in its header.  Otherwise writes a
    folder: a model folder of this package for `"flux"`, for `"diffusers"` one that `AutoencoderKL.from_pretrained` (or
    `AutoencoderKLFlux2`, `AutoencoderTiny`) loads, for `"diffusers-flax"` one that `flax_vae.compat.FlaxAutoencoderKL`
    loads, and diffusers' own class of that name up to 0.39, and for `"taesd"` one file for each half; the other layouts
    have no folders.  Refuses names that end like other files, such as `.pt`.

    Args:
      path: File or folder; missing parents are created.
      weights: Result of `load_weights`, or `Weights(tensors, layout, params)`.
      layout: One of `LAYOUTS`.
      dtype: Floating dtype to round to; None keeps every bit.
      prefix: Prefix of every name in a file, `"first_stage_model."` for example, as in Stable Diffusion checkpoints.
      metadata: Further strings for the header of a file.
      force: Whether to replace an existing file, or a folder of the same kind.
      progress: Function called before each tensor with the number done and the total.

    Raises:
      ConversionError: If the tensors do not match the architecture; if the layout cannot express it, has no folder or
        takes no prefix; if a value is too large for `dtype`; if the name is that of another kind of file, or of a file
        that is part of a model of several.
      FileExistsError: If it exists and `force` is False, or if it is a folder with other files in it.
      OSError: If it cannot be written, for example because the disk is full.
      ValueError: If the layout or the dtype is unknown.
    """
    target, params = Path(path), weights.params
    single = target.suffix.lower() in FILE_SUFFIXES
    # diffusers builds from a configuration, so a single file must not hold what the configuration cannot express; but
    # tiny autoencoders are also built by classes of others, which have diffusers' names.
    configured = layout == "diffusers" and not (single and not params.has_posterior)
    config = write_diffusers_config(params, weights.kept) if configured else {}
    state_dict = weights.to(layout)
    if dtype is not None:
        state_dict = cast(state_dict, dtype)
    if progress is not None:
        state_dict = _watch(state_dict, progress)
    if single:
        _check_prefix(prefix, layout)
        _refuse_part(target)
        entries = header(params) | dict(metadata or {})
        write_tensors(target, {prefix + key: t for key, t in state_dict.items()}, metadata=entries, force=force)
        return
    if prefix or metadata:
        raise ConversionError(
            f"{target} is a folder, which takes no prefix and no metadata; write {target}.safetensors", path=target
        )
    refuse_file_name(target)
    if layout == FOLDER_LAYOUT:
        save_folder(target, params, state_dict, force=force)
    elif layout == "diffusers":
        with atomic_folder(target, (CONFIG, DIFFUSERS_WEIGHTS), force=force) as fresh:
            write_json(fresh / CONFIG, config)
            write_tensors(fresh / DIFFUSERS_WEIGHTS, state_dict, metadata=header(read_diffusers_config(config)))
    elif layout == "diffusers-flax":
        config = write_flax_config(params, weights.kept)
        with atomic_folder(target, (CONFIG, FLAX_WEIGHTS), force=force) as fresh:
            write_json(fresh / CONFIG, config)
            write_msgpack(fresh / FLAX_WEIGHTS, unflatten(state_dict))
    elif layout == PAIR_LAYOUT:
        halves = {f"{half}{FILE_SUFFIXES[0]}": tensors for half, tensors in split_halves(state_dict).items()}
        with atomic_folder(target, tuple(halves), force=force) as fresh:
            for name, tensors in halves.items():
                write_tensors(fresh / name, tensors, metadata=header(params))
    else:
        raise ConversionError(
            f"the {layout!r} layout has no folders, only {FOLDER_LAYOUT!r}, 'diffusers', 'diffusers-flax' and "
            f"{PAIR_LAYOUT!r} have; "
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
    """Refuses to replace a file that would no longer match the configuration or the index beside it."""
    real = target.resolve()
    if not real.exists():
        return
    if (real.parent / CONFIG).is_file() and (real.name == WEIGHTS or real.name.startswith("diffusion_")):
        raise ConversionError(
            f"{target} belongs to the {CONFIG} beside it; use the folder {target.parent}, or another name", path=target
        )
    for index in filter(lambda entry: is_index(entry.name), real.parent.iterdir()):
        with contextlib.suppress(FileError):
            if real.name in read_shard_index(index).values():
                raise ConversionError(
                    f"{target} is one of the shards of {index.name}; choose another name", path=target
                )


def _check_prefix(prefix: str, layout: str) -> None:
    """Checks that readers will recognise the prefix."""
    if prefix and layout == "diffusers-flax":
        raise ConversionError(f"prefix={prefix!r} is invalid: the {layout!r} layout takes none; leave it out")
    if not re.fullmatch(r"([\w-]+\.)*", prefix):
        raise ConversionError(
            f"prefix={prefix!r} is invalid; expected names that each end in a dot: first_stage_model."
        )
