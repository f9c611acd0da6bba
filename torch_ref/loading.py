"""Weights from any file or folder; model folders, whose tensors have this package's own names."""

import os
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flax_vae.convert.architecture import AutoEncoderParams, check_weights
from flax_vae.convert.formats import BIT_PATTERNS, ArrayLike, cast, to_array
from flax_vae.convert.weights import load_weights, save_folder
from torch_ref.autoencoder import AutoEncoder


def from_pretrained(
    path: str | os.PathLike[str],
    preset: AutoEncoderParams | str | None = None,
    *,
    dtype: torch.dtype | None = None,
    raw_weights: bool = False,
    variant: str | None = None,
    prefix: str | None = None,
) -> AutoEncoder:
    """Returns the model of a file or folder, with its weights.

    Args:
      path: what `flax_vae.from_pretrained` takes.
      preset: likewise.
      dtype: Dtype of the parameters; None keeps what the file holds.
      raw_weights: likewise.
      variant: likewise.
      prefix: likewise.

    Raises:
      FileNotFoundError: if there is no such file or folder, or a part of it is missing.
      FileError: if a file is damaged, or of no known kind.
      ConversionError: if the tensors are not those of the architecture, or nothing says what shapes do not tell, or if
        a number is too large for `dtype`.
      ValueError: if there is no such preset, if models cannot compute in the dtype of the weights, see `dtype`, or if
        `dtype` is none of theirs.
    """
    weights = load_weights(path, preset, raw_weights=raw_weights, variant=variant, prefix=prefix)
    if dtype is None:
        check_weights(weights.tensors.values(), "dtype=")
    else:
        weights = replace(weights, tensors=cast(weights.tensors, str(dtype).removeprefix("torch.")))
    with torch.device("meta"):  # the weights come from the file: nothing to allocate or to initialise twice
        model = AutoEncoder(weights.params)
    state_dict = {key: to_tensor(array) for key, array in weights.to("flux").items()}
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model


def save_pretrained(path: str | os.PathLike[str], model: AutoEncoder, *, force: bool = False) -> None:
    """Writes a model folder; the inverse of `from_pretrained`.

    Args:
      path: the folder to make.
      model: the model.
      force: replace an existing model folder.

    Raises:
      FileExistsError: if the folder exists and `force` is off.
    """
    save_folder(path, model.params, {key: to_array(t) for key, t in model.state_dict().items()}, force=force)


def to_tensor(array: ArrayLike) -> Tensor:
    """Returns a copy as a tensor, bit for bit: the inverse of `to_array`."""
    array = np.array(array, order="C")
    if array.dtype.name in BIT_PATTERNS:
        integers, _ = BIT_PATTERNS[array.dtype.name]
        return torch.from_numpy(array.view(integers)).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)
