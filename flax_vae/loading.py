"""Loads weights from any file or folder, and saves model folders, which PyTorch reads without conversion."""

import os
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from flax_vae.attention import AttentionPath
from flax_vae.autoencoder import AutoEncoder, Model
from flax_vae.convert.architecture import Architecture, AutoEncoderParams, check_weights
from flax_vae.convert.errors import ArgumentError
from flax_vae.convert.formats import ArrayLike, cast
from flax_vae.convert.table import to_flax, to_torch
from flax_vae.convert.weights import load_weights, save_folder
from flax_vae.numerics import Numerics, Remat
from flax_vae.tiny_autoencoder import TinyAutoEncoder


def from_pretrained(
    path: str | os.PathLike[str],
    preset: Architecture | str | None = None,
    *,
    dtype: Dtype | None = None,
    param_dtype: Dtype | None = None,
    remat: Remat = "none",
    attention: AttentionPath = "auto",
    raw_weights: bool = False,
    variant: str | None = None,
    prefix: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
) -> tuple[Model, dict[str, Any]]:
    """Returns the model of a file or folder and its parameters, an `AutoEncoder` or a `TinyAutoEncoder`.

    Args:
      path: Model folder of this package or of diffusers, safetensors file or index of its shards, PyTorch or Lightning
        checkpoint, also of a whole Stable Diffusion model, model of diffusers' former Flax classes, training
        checkpoint, or model on the Hugging Face hub (the `hub` extra): `"hf:org/name[/folder or file][@revision]"`, or
        `"org/name"`, as long as that cannot be a local path: it does not exist, and neither does a folder `org`.
      preset: Name of a preset or an architecture, needed if no configuration lies beside the weights: shapes do not
        determine scale, shift and padding.
      dtype: Computation dtype; see `Numerics`.
      param_dtype: Dtype of the parameters; None keeps that of the file.  For inference in half precision, that of
        `dtype` casts them once instead of in every call, halves their memory, and rounds biases and scales too.
      remat: Blocks whose activations the backward pass recomputes; see `Numerics`.
      attention: Path of attention; see `Numerics`.
      raw_weights: Whether to take the raw weights of a training checkpoint instead of their moving average.
      variant: Variant of a diffusers folder that holds several, such as `"fp16"`.
      prefix: Prefix of the autoencoder's names, where a file holds several, such as `"ema."`.
      revision: Branch, tag or commit of a model on the hub; None for the one in its name, or `main`.
      subfolder: Folder inside `path`, such as `"vae"` of a whole pipeline.

    Examples:
      >>> model = AutoEncoder(PRESETS["tiny"])
      >>> save_pretrained("model", model, init_params(model, jax.random.key(0)))
      >>> model, params = from_pretrained("model", dtype=jnp.bfloat16)
      >>> model.params == PRESETS["tiny"]
      True

    Raises:
      FileNotFoundError: If the file or folder, or a part of it, does not exist, or the hub does not provide it.
      FileError: If a file is damaged, or of an unknown kind.
      ConversionError: If the tensors do not match the architecture, if scale, shift and padding are unknown, or if a
        value is too large for `param_dtype`.
      ValueError: If the preset, `remat` or `attention` is unknown, if models cannot compute in the dtype of the weights
        or JAX cannot hold it (see `param_dtype`), if `dtype` or `param_dtype` is not a dtype of models, if `revision`
        is given for a local path, or if `revision` or `subfolder` is given twice.
    """
    numerics = Numerics(dtype, jnp.float32 if param_dtype is None else param_dtype, remat, attention)
    weights = load_weights(
        path,
        preset,
        raw_weights=raw_weights,
        variant=variant,
        prefix=prefix,
        revision=revision,
        subfolder=subfolder,
    )
    if param_dtype is None:
        check_weights(weights.tensors.values(), "param_dtype=")
    else:
        weights = replace(weights, tensors=cast(weights.tensors, np.dtype(param_dtype).name))
    tree = to_flax(weights.tensors, weights.params, weights.layout)
    params = jax.tree.map(to_jax, tree)
    held = jax.tree.leaves(params)[0].dtype
    return make_model(weights.params, replace(numerics, param_dtype=held)), params


def save_pretrained(path: str | os.PathLike[str], model: Model, params: dict[str, Any], *, force: bool = False) -> None:
    """Writes a model folder; the inverse of `from_pretrained`.

    Args:
      path: Folder to write.
      model: Model, whose architecture is written to `config.json`.
      params: Parameters of the model, written in their own dtypes.
      force: Whether to replace an existing model folder.

    Raises:
      FileExistsError: If the folder exists and `force` is False.
      ConversionError: If the parameters do not match the model's architecture.
    """
    state_dict = to_torch(jax.device_get(params), model.params, layout="flux")
    save_folder(path, model.params, state_dict, force=force)


def make_model(params: Architecture, numerics: Numerics) -> Model:
    """Returns the model of an architecture, of either kind.

    Args:
      params: Architecture.
      numerics: How the model is computed; a `TinyAutoEncoder` has no attention.
    """
    if isinstance(params, AutoEncoderParams):
        return AutoEncoder(params, **vars(numerics))
    return TinyAutoEncoder(params, numerics.dtype, numerics.param_dtype, numerics.remat)


def to_jax(array: ArrayLike, option: str = "param_dtype=") -> jax.Array:
    """Returns an array of JAX with the numbers of an array, such as a view of a file, in memory of its own.

    Args:
      array: Array to copy.
      option: Name of the caller's argument that chooses another dtype, as for `check_weights`.

    Raises:
      ArgumentError: If JAX cannot hold the dtype.
    """
    # Without a copy, JAX may use an aligned array itself on a CPU, which here is a view of a file.
    result, expected = jnp.array(np.asarray(array), copy=True), np.dtype(array.dtype)
    if result.dtype != expected:
        raise ArgumentError(
            f"the weights are {expected.name}, which JAX turns into {result.dtype.name} here; choose {option} "
            "or set jax_enable_x64"
        )
    return result
