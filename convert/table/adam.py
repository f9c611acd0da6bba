"""Converts the state of Adam and AdamW between the frameworks, so that training resumes in the other one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flax_vae.convert.architecture import Architecture
from flax_vae.convert.errors import ConversionError
from flax_vae.convert.formats import ArrayLike
from flax_vae.convert.table.rows import expand, to_flax, to_torch

_STATES, _MOMENTS = "optimizer.state.", ("exp_avg", "exp_avg_sq")  # names in a checkpoint


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


def adam_state_in(tensors: Mapping[str, ArrayLike], params: Architecture) -> AdamState | None:
    """Returns the Adam state in a PyTorch checkpoint of `{"model": ..., "optimizer": optimizer.state_dict()}`.

    The optimizer numbers the parameters in their order in the model, which is that of the table.

    Args:
      tensors: Tensors of the checkpoint, as `flax_vae.convert.weights.open_weights` names them.
      params: Architecture of the model, in the `flux` layout.

    Returns:
      The state, or None if the checkpoint holds no state of an optimizer.

    Raises:
      ConversionError: If it is not the state of one Adam for all parameters, in this order.
    """
    states: dict[str, dict[str, ArrayLike]] = {}
    for name, array in tensors.items():
        if name.startswith(_STATES):
            number, _, moment = name.removeprefix(_STATES).partition(".")
            states.setdefault(number, {})[moment] = array
    if not states:
        return None
    keys = [row.theirs for row in expand(params) if not row.ours.startswith("bn/")]
    counts = {int(np.asarray(state.get("step", -1))) for state in states.values()}
    complete = all({"step", *_MOMENTS} <= state.keys() for state in states.values())
    if not complete or len(counts) != 1 or states.keys() != {*map(str, range(len(keys)))}:
        raise ConversionError(
            f"the optimizer's state has {len(states)} entries after {sorted(counts)} updates; expected step, exp_avg "
            f"and exp_avg_sq of {len(keys)} parameters after equally many updates"
        )
    exp_avg, exp_avg_sq = ({key: states[str(number)][moment] for number, key in enumerate(keys)} for moment in _MOMENTS)
    return adam_state_from_torch(counts.pop(), exp_avg, exp_avg_sq, params)


def adam_state_from_torch(
    count: int, exp_avg: Mapping[str, ArrayLike], exp_avg_sq: Mapping[str, ArrayLike], params: Architecture
) -> AdamState:
    """Returns the Adam state of PyTorch moments keyed by parameter names in the `flux` layout.

    Args:
      count: Number of updates.
      exp_avg: First moments by name.
      exp_avg_sq: Second moments by name.
      params: Architecture of the model.

    Raises:
      ConversionError: If they do not match the architecture.
    """
    untrained = {  # buffers in PyTorch, leaves without a gradient in Flax
        row.theirs: np.zeros(row.torch_shape) for row in expand(params) if row.ours.startswith("bn/")
    }
    return AdamState(count, *(to_flax(dict(moments) | untrained, params, "flux") for moments in (exp_avg, exp_avg_sq)))


def adam_state_to_torch(
    moments: AdamState, params: Architecture
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns `exp_avg` and `exp_avg_sq` of PyTorch's parameters; the inverse of `adam_state_from_torch`.

    Args:
      moments: Adam state.
      params: Architecture of the model.

    Raises:
      ConversionError: If they do not match the architecture.
    """
    untrained = {row.theirs for row in expand(params) if row.ours.startswith("bn/")}
    exp_avg, exp_avg_sq = (
        {key: array for key, array in to_torch(tree, params, "flux").items() if key not in untrained}
        for tree in (moments.mu, moments.nu)
    )
    return exp_avg, exp_avg_sq
