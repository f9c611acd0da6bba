"""Converts the state of Adam and AdamW between the frameworks, so that training resumes in the other one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.convert.formats import ArrayLike
from flax_vae.convert.table.rows import expand, to_flax, to_torch


class AdamState(NamedTuple):
    """State of Adam under Flax parameter names.

    Attributes:
      count: Number of updates done.
      mu: First moments, a tree like the parameters; optax's `mu`, PyTorch's `exp_avg`.
      nu: Second moments; optax's `nu`, PyTorch's `exp_avg_sq`.
    """

    count: int
    mu: dict[str, Any]
    nu: dict[str, Any]


def adam_state_from_torch(
    count: int, exp_avg: Mapping[str, ArrayLike], exp_avg_sq: Mapping[str, ArrayLike], params: AutoEncoderParams
) -> AdamState:
    """Returns the Adam state of PyTorch moments keyed by parameter names in the `flux` layout.

    Raises:
      ConversionError: If they do not match the architecture.
    """
    untrained = {  # buffers in PyTorch, leaves without a gradient in Flax
        row.theirs: np.zeros(row.torch_shape) for row in expand(params) if row.ours.startswith("bn/")
    }
    return AdamState(count, *(to_flax(dict(moments) | untrained, params, "flux") for moments in (exp_avg, exp_avg_sq)))


def adam_state_to_torch(
    moments: AdamState, params: AutoEncoderParams
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns `exp_avg` and `exp_avg_sq` of PyTorch's parameters; the inverse of `adam_state_from_torch`.

    Raises:
      ConversionError: If they do not match the architecture.
    """
    untrained = {row.theirs for row in expand(params) if row.ours.startswith("bn/")}
    exp_avg, exp_avg_sq = (
        {key: array for key, array in to_torch(tree, params, "flux").items() if key not in untrained}
        for tree in (moments.mu, moments.nu)
    )
    return exp_avg, exp_avg_sq
