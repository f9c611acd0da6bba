"""Weights from any file or folder; model folders, which PyTorch reads as they are, to any."""

import os
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from flax_vae.autoencoder import AutoEncoder
from flax_vae.convert.architecture import AutoEncoderParams, check_weights
from flax_vae.convert.formats import FLOATS, ArrayLike, cast
from flax_vae.convert.table import to_flax, to_torch
from flax_vae.convert.weights import load_weights, save_folder
from flax_vae.ops import Remat


def from_pretrained(
    path: str | os.PathLike[str],
    preset: AutoEncoderParams | str | None = None,
    *,
    dtype: Dtype | None = None,
    param_dtype: Dtype | None = None,
    remat: Remat = "none",
    raw_weights: bool = False,
    variant: str | None = None,
    prefix: str | None = None,
) -> tuple[AutoEncoder, dict[str, Any]]:
    """Returns the model of a file or folder and its parameters.

    Args:
      path: a model folder of ours or diffusers', a safetensors file, whole or in shards, a PyTorch or Lightning
        checkpoint, also of a whole Stable Diffusion model, one of diffusers' former Flax models, a checkpoint of
        training, or a model on the Hugging Face hub, `"hf:org/name[/folder or file][@revision]"` or `"org/name"` (the
        `hub` extra).
      preset: the name of a preset, or an architecture, where no configuration lies beside the weights: shapes do not
        tell scale, shift and padding.
      dtype: Computation dtype; see `AutoEncoder`.
      param_dtype: Dtype of the parameters; None keeps what the file holds.
      remat: see `AutoEncoder`.
      raw_weights: whether to take the weights themselves from a checkpoint of training that also holds their moving
        average, which is taken otherwise.
      variant: which variant of a diffusers folder that holds several, such as `"fp16"`.
      prefix: what stands before the names of the autoencoder, where a file holds several, such as `"ema."`.

    Raises:
      FileNotFoundError: if there is no such file or folder, or a part of it is missing.
      FileError: if a file is damaged, or of no known kind.
      ConversionError: if the tensors are not those of the architecture, or nothing says what shapes do not tell, or if
        a number is too large for `param_dtype`.
      ValueError: if there is no such preset; if JAX cannot hold the weights in their own dtype or models cannot compute
        with it, see `param_dtype`; if one of the dtypes is none of a model's.
    """
    if dtype is not None and np.dtype(dtype).name not in FLOATS:
        raise ValueError(f"dtype={np.dtype(dtype).name!r} must be one of {', '.join(FLOATS)}")
    weights = load_weights(path, preset, raw_weights=raw_weights, variant=variant, prefix=prefix)
    if param_dtype is None:
        check_weights(weights.tensors.values(), "param_dtype=")
    else:
        weights = replace(weights, tensors=cast(weights.tensors, np.dtype(param_dtype).name))
    tree = to_flax(weights.tensors, weights.params, weights.layout)
    params = jax.tree.map(_to_jax, tree)
    held = jax.tree.leaves(params)[0].dtype
    return AutoEncoder(weights.params, dtype=dtype, param_dtype=held, remat=remat), params


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


def _to_jax(array: ArrayLike) -> jax.Array:
    # A copy: on a CPU JAX may keep an array that lies well as it is, which here is a view of a file.
    result, expected = jnp.array(np.asarray(array), copy=True), np.dtype(array.dtype)
    if result.dtype != expected:
        raise ValueError(
            f"the weights are {expected.name}, which JAX turns into {result.dtype.name} here; choose param_dtype= "
            "or set jax_enable_x64"
        )
    return result
