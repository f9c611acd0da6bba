"""Adds modules to a published model without changing its function: attention at every level, time conditioning.

New output layers start at zero: an attention block whose `proj_out` is zero returns its input, and a `time_mlp` of
zeros adds zero.  The grafted model therefore computes the published function at any time and can be trained further:
the zeros receive gradients, because their inputs are not zero.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.convert.errors import ConversionError
from flax_vae.convert.formats import ArrayLike
from flax_vae.convert.table.rows import Row, expand

_ZERO = ("/proj_out/", "/time_mlp/")


def graft(
    state_dict: Mapping[str, ArrayLike],
    params: AutoEncoderParams,
    *,
    attention: bool = True,
    time_emb_dim: int | None = None,
    time_embedding: Literal["linear", "sinusoidal"] = "linear",
    seed: int = 0,
) -> tuple[dict[str, ArrayLike], AutoEncoderParams]:
    """Adds attention and time conditioning to a model; the function that it computes stays the same.

    Padding, quant convolutions, scale and shift are those of `params`.

    Args:
      state_dict: Weights in the `flux` layout.
      params: Architecture of the weights.
      attention: Whether to add attention after every residual block that has none.
      time_emb_dim: Width of the time embedding to add, or None.
      time_embedding: Kind of time embedding to add.
      seed: Seed of the added weights that are not zero.

    Returns:
      The weights and the architecture of the grafted model.

    Raises:
      ConversionError: If there is nothing to add, the model already has a time embedding, or the weights do not match
        `params`.
      ValueError: If the grafted architecture is invalid.
    """
    if time_emb_dim is not None and params.time_emb_dim is not None:
        raise ConversionError(
            f"the model already has a time embedding (time_emb_dim={params.time_emb_dim}); pass time_emb_dim=None"
        )
    grafted = params
    if attention:
        grafted = replace(grafted, attn_levels=None)
    if time_emb_dim is not None:
        grafted = replace(grafted, time_emb_dim=time_emb_dim, time_embedding=time_embedding)
    if grafted == params:
        raise ConversionError(
            "nothing to graft: the model has attention at every level; pass time_emb_dim to add a time embedding"
        )
    there = {row.theirs: row.torch_shape for row in expand(params)}
    if {key: tuple(array.shape) for key, array in state_dict.items()} != there:
        raise ConversionError("the weights do not match the architecture in the 'flux' layout; convert them first")
    dtype = next(iter(state_dict.values())).dtype
    rng = np.random.default_rng(seed)
    weights: dict[str, ArrayLike] = {}
    for row in expand(grafted):
        weights[row.theirs] = state_dict[row.theirs] if row.theirs in there else _start(row, rng).astype(dtype)
    return weights, grafted


def _start(row: Row, rng: np.random.Generator) -> np.ndarray:
    """Returns a new tensor: zero where the function must not change, otherwise initialised as Flax does."""
    if row.ours.endswith("/scale"):
        return np.ones(row.torch_shape)
    if row.ours.endswith("/bias") or any(part in row.ours for part in _ZERO):
        return np.zeros(row.torch_shape)
    return rng.standard_normal(row.torch_shape) * np.prod(row.shape[:-1]) ** -0.5
