"""Published weights in an architecture that has more: attention at every level, conditioning on time.

What is added starts as nothing: an attention block whose `proj_out` is zero returns its input, a `time_mlp` of zeros
adds zero.  So the grafted model's function is the published one's, whatever the time, and training goes on from there:
the zeros have gradients, because what stands before them is not zero.
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
    """Returns the weights and the architecture with attention and time added, and the same function.

    Padding, quant convolutions, scale and shift stay those of `params`.

    Args:
      state_dict: weights in the `flux` layout.
      params: their architecture.
      attention: whether to add attention after every residual block that has none.
      time_emb_dim: width of the time embedding to add, or None.
      time_embedding: which one.
      seed: of the added weights that are not zero.

    Raises:
      ConversionError: if there is nothing to add, the model is conditioned on time already, or the weights are not
        those of `params`.
      ValueError: if the grafted architecture cannot be.
    """
    if time_emb_dim is not None and params.time_emb_dim is not None:
        raise ConversionError(f"the model has a time embedding already (time_emb_dim={params.time_emb_dim})")
    grafted = params
    if attention:
        grafted = replace(grafted, attn_levels=None)
    if time_emb_dim is not None:
        grafted = replace(grafted, time_emb_dim=time_emb_dim, time_embedding=time_embedding)
    if grafted == params:
        raise ConversionError("there is nothing to graft: the model has attention at every level, and no time is asked")
    there = {row.theirs: row.torch_shape for row in expand(params)}
    if {key: tuple(array.shape) for key, array in state_dict.items()} != there:
        raise ConversionError("the weights are not those of the architecture in the 'flux' layout; convert them first")
    dtype = next(iter(state_dict.values())).dtype
    rng = np.random.default_rng(seed)
    weights: dict[str, ArrayLike] = {}
    for row in expand(grafted):
        weights[row.theirs] = state_dict[row.theirs] if row.theirs in there else _start(row, rng).astype(dtype)
    return weights, grafted


def _start(row: Row, rng: np.random.Generator) -> np.ndarray:
    """A new tensor: zero where it must be for the function to stay, otherwise as Flax would initialise it."""
    if row.ours.endswith("/scale"):
        return np.ones(row.torch_shape)
    if row.ours.endswith("/bias") or any(part in row.ours for part in _ZERO):
        return np.zeros(row.torch_shape)
    return rng.standard_normal(row.torch_shape) * np.prod(row.shape[:-1]) ** -0.5
