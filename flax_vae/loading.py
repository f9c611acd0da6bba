"""Model folders: `config.json` and `model.safetensors`, which PyTorch reads as they are."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from convert.folder import load_folder, save_folder
from convert.table import to_flax, to_torch
from flax_vae.autoencoder import AutoEncoder
from flax_vae.remat import Remat


def from_pretrained(
    path: str | os.PathLike[str],
    *,
    dtype: Dtype | None = None,
    param_dtype: Dtype | None = None,
    remat: Remat = "none",
) -> tuple[AutoEncoder, dict[str, Any]]:
    """Returns the model of a folder and its parameters.

    Args:
      path: a model folder, or the `model.safetensors` inside it.
      dtype: of the computation; see `AutoEncoder`.
      param_dtype: of the parameters; None keeps what the file holds.
      remat: see `AutoEncoder`.

    Raises:
      FileNotFoundError: if there is no such folder, or a file is missing from it.
      FileError: if a file is damaged.
      ConversionError: if the tensors are not those of `config.json`'s architecture.
      ValueError: if a tensor cannot be held in its own dtype; see `param_dtype`.
    """
    record, state_dict = load_folder(path)
    params = jax.tree.map(lambda array: _to_jax(array, param_dtype), to_flax(state_dict, record, layout="flux"))
    held = jax.tree.leaves(params)[0].dtype
    return AutoEncoder(record, dtype=dtype, param_dtype=held, remat=remat), params


def save_pretrained(
    path: str | os.PathLike[str], model: AutoEncoder, params: dict[str, Any], *, force: bool = False
) -> None:
    """Writes a model folder; the inverse of `from_pretrained`.

    Args:
      path: the folder to make.
      model: the model, whose architecture goes into `config.json`.
      params: its parameters, written in their own dtypes.
      force: replace an existing model folder.

    Raises:
      FileExistsError: if the folder exists and `force` is off.
      ConversionError: if the parameters are not those of the model's architecture.
    """
    state_dict = to_torch(jax.device_get(params), model.params, layout="flux")
    save_folder(path, model.params, state_dict, force=force)


def _to_jax(array: np.ndarray, dtype: Dtype | None) -> jax.Array:
    result = jnp.asarray(array, dtype)
    expected = np.dtype(array.dtype if dtype is None else dtype)
    if result.dtype != expected:
        raise ValueError(
            f"the weights are {expected.name}, which JAX turns into {result.dtype.name} here; choose param_dtype= "
            "or set jax_enable_x64"
        )
    return result
