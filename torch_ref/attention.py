"""Single-head scaled dot-product attention.

Twins: `torch_ref.attention` and `flax_vae.attention`.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def attention(
    q: Float[Tensor, "b n c"], k: Float[Tensor, "b m c"], v: Float[Tensor, "b m c"]
) -> Float[Tensor, "b n c"]:
    """Returns `softmax(q kᵀ / sqrt(c)) v`, computed with the full matrix of scores.

    Source: seed module 2.
    """
    weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) / (q.shape[-1] ** 0.5), dim=-1)
    return torch.bmm(weights, v)
