"""Reads and writes the state of `torch.optim.Adam` and `AdamW`; see `flax_vae.convert.table.adam`.

Twin: `flax_vae.adam_state`.
"""

import torch

from flax_vae.convert.formats import to_array
from flax_vae.convert.table import AdamState, adam_state_from_torch, adam_state_to_torch
from torch_ref.autoencoder import AutoEncoder
from torch_ref.loading import to_tensor


def read_adam_state(optimizer: torch.optim.Optimizer, model: AutoEncoder) -> AdamState:
    """Returns the optimizer's state of the model's parameters.

    Raises:
      ValueError: If a parameter has had no update, or the numbers of updates differ.
    """
    states = {name: optimizer.state[weight] for name, weight in model.named_parameters() if weight in optimizer.state}
    missing = [name for name, _ in model.named_parameters() if name not in states]
    counts = {int(state["step"]) for state in states.values()}
    if missing or len(counts) != 1:
        raise ValueError(
            f"Adam's state is incomplete: {len(missing)} parameters have none ({', '.join(missing[:3])}), the others "
            f"have {sorted(counts)} updates; expected equally many updates, at least one, of every parameter"
        )
    exp_avg, exp_avg_sq = (
        {name: to_array(state[moment]) for name, state in states.items()} for moment in ("exp_avg", "exp_avg_sq")
    )
    return adam_state_from_torch(counts.pop(), exp_avg, exp_avg_sq, model.params)


def write_adam_state(optimizer: torch.optim.Optimizer, model: AutoEncoder, state: AdamState) -> None:
    """Sets the optimizer's state, so that its next update has number `state.count + 1`; inverts `read_adam_state`.

    Raises:
      ConversionError: If it does not match the model.
    """
    exp_avg, exp_avg_sq = adam_state_to_torch(state, model.params)
    for name, weight in model.named_parameters():
        optimizer.state[weight] = {
            "step": torch.tensor(float(state.count)),
            "exp_avg": to_tensor(exp_avg[name]).to(weight.device),
            "exp_avg_sq": to_tensor(exp_avg_sq[name]).to(weight.device),
        }
