"""Loads weights from any file or folder, and saves model folders, whose tensors have this package's own names."""

import os
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flax_vae.convert.architecture import Architecture, AutoEncoderParams, check_weights
from flax_vae.convert.formats import BIT_PATTERNS, ArrayLike, cast, to_array
from flax_vae.convert.weights import load_weights, save_folder
from torch_ref.autoencoder import AutoEncoder, Model
from torch_ref.tiny_autoencoder import TinyAutoEncoder


def from_pretrained(
    path: str | os.PathLike[str],
    preset: Architecture | str | None = None,
    *,
    dtype: torch.dtype | None = None,
    raw_weights: bool = False,
    variant: str | None = None,
    prefix: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> Model:
    """Returns the model of a file or folder, with its weights, an `AutoEncoder` or a `TinyAutoEncoder`.

    Args:
      path: File, folder or name on the hub, as for `flax_vae.from_pretrained`.
      preset: Architecture or name of a preset, as for `flax_vae.from_pretrained`.
      dtype: Dtype of the parameters; None keeps that of the file.
      raw_weights: Whether to take the raw weights instead of their moving average.
      variant: Variant of a diffusers folder.
      prefix: Prefix of the autoencoder's names, where a file holds several.
      revision: Branch, tag or commit of a model on the hub.
      subfolder: Folder inside `path`.

    Raises:
      FileNotFoundError: If the file or folder, or a part of it, does not exist, or the hub does not provide it.
      FileError: If a file is damaged, or of an unknown kind.
      ConversionError: If the tensors do not match the architecture, if scale, shift and padding are unknown, or if a
        value is too large for `dtype`.
      ValueError: If the preset is unknown, if models cannot compute in the dtype of the weights (see `dtype`), or if
        `dtype` is not a dtype of models, if `revision` is given for a local path, or if `revision` or `subfolder` is
        given twice.
    """
    weights = load_weights(
        path,
        preset,
        raw_weights=raw_weights,
        variant=variant,
        prefix=prefix,
        revision=revision,
        subfolder=subfolder,
    )
    if dtype is None:
        check_weights(weights.tensors.values(), "dtype=")
    else:
        weights = replace(weights, tensors=cast(weights.tensors, str(dtype).removeprefix("torch.")))
    with torch.device("meta"):  # the weights come from the file, so nothing is allocated or initialised twice
        model = _model(weights.params)
    state_dict = {key: to_tensor(array) for key, array in weights.to("flux").items()}
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model


def save_pretrained(path: str | os.PathLike[str], model: Model, *, force: bool = False) -> None:
    """Writes a model folder; the inverse of `from_pretrained`.

    Args:
      path: Folder to write.
      model: Model to save.
      force: Whether to replace an existing model folder.

    Raises:
      FileExistsError: If the folder exists and `force` is False.
    """
    save_folder(path, model.params, {key: to_array(t) for key, t in model.state_dict().items()}, force=force)


def _model(params: Architecture) -> Model:
    return AutoEncoder(params) if isinstance(params, AutoEncoderParams) else TinyAutoEncoder(params)


def to_tensor(array: ArrayLike) -> Tensor:
    """Returns a copy as a tensor, bit for bit; the inverse of `to_array`."""
    array = np.array(array, order="C")
    if array.dtype.name in BIT_PATTERNS:
        integers, _ = BIT_PATTERNS[array.dtype.name]
        return torch.from_numpy(array.view(integers)).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)
