"""The moments of `torch.optim.Adam` and `AdamW`, out and in: see `flax_vae.convert.table.adam`."""

import torch

from flax_vae.convert.formats import to_array
from flax_vae.convert.table import AdamState, adam_state_from_torch, adam_state_to_torch
from torch_ref.autoencoder import AutoEncoder
from torch_ref.loading import to_tensor


def read_moments(optimizer: torch.optim.Optimizer, model: AutoEncoder) -> AdamState:
    """Returns what the optimiser remembers of the model's parameters.

    Raises:
      ValueError: if it has not made an update of all of them, or not as many of each.
    """
    states = {name: optimizer.state[weight] for name, weight in model.named_parameters() if weight in optimizer.state}
    missing = [name for name, _ in model.named_parameters() if name not in states]
    counts = {int(state["step"]) for state in states.values()}
    if missing or len(counts) != 1:
        raise ValueError(
            f"Adam's state is not whole: {len(missing)} parameters have none ({', '.join(missing[:3])}), the others "
            f"have {sorted(counts)} updates; make at least one update of every parameter, and the same number"
        )
    exp_avg, exp_avg_sq = (
        {name: to_array(state[moment]) for name, state in states.items()} for moment in ("exp_avg", "exp_avg_sq")
    )
    return adam_state_from_torch(counts.pop(), exp_avg, exp_avg_sq, model.params)


def write_moments(optimizer: torch.optim.Optimizer, model: AutoEncoder, moments: AdamState) -> None:
    """Gives the optimiser the moments, so that its next update is number `moments.count + 1`; the inverse.

    Raises:
      ConversionError: if they are not those of the model.
    """
    exp_avg, exp_avg_sq = adam_state_to_torch(moments, model.params)
    for name, weight in model.named_parameters():
        optimizer.state[weight] = {
            "step": torch.tensor(float(moments.count)),
            "exp_avg": to_tensor(exp_avg[name]).to(weight.device),
            "exp_avg_sq": to_tensor(exp_avg_sq[name]).to(weight.device),
        }
