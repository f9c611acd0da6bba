"""Weights from any file or folder; model folders, whose tensors have this package's own names."""

import os

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from convert.architecture import AutoEncoderParams
from convert.files import ArrayLike
from convert.folder import save_folder
from convert.loading import load_weights
from convert.pickles import to_array
from torch_ref.autoencoder import AutoEncoder


def from_pretrained(
    path: str | os.PathLike[str],
    preset: AutoEncoderParams | str | None = None,
    *,
    raw_weights: bool = False,
    variant: str | None = None,
    prefix: str | None = None,
) -> AutoEncoder:
    """Returns the model of a file or folder, with its weights, in the dtype that the file holds.

    Args:
      path: what `flax_vae.from_pretrained` takes.
      preset: likewise.
      raw_weights: likewise.
      variant: likewise.
      prefix: likewise.

    Raises:
      FileNotFoundError: if there is no such file or folder, or a part of it is missing.
      FileError: if a file is damaged, or of no known kind.
      ConversionError: if the tensors are not those of the architecture, or nothing says what shapes do not tell.
      ValueError: if there is no such preset.
    """
    weights = load_weights(path, preset, raw_weights=raw_weights, variant=variant, prefix=prefix)
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
    """Returns a copy as a tensor, bit for bit: the inverse of `to_array`, with a bfloat16 that torch does not know."""
    array = np.array(array, order="C")
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
