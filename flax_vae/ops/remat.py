"""What the backward pass computes again instead of keeping: memory bought with arithmetic."""

from typing import Literal, get_args

from flax import linen as nn

Remat = Literal["none", "attention", "blocks"]


def rematerialised(
    remat: Remat, resnet: type[nn.Module], attn: type[nn.Module]
) -> tuple[type[nn.Module], type[nn.Module]]:
    """Returns the two kinds of block, wrapped where their activations are not to be kept.

    The names of the parameters do not change: linen's transform stands in for the class.

    Args:
      remat: `"none"` keeps all, `"attention"` keeps nothing inside attention blocks, `"blocks"` nothing inside any.
      resnet: the residual block.
      attn: the attention block.

    Raises:
      ValueError: if `remat` is none of the three.
    """
    if remat not in get_args(Remat):
        raise ValueError(f"remat={remat!r} must be one of {', '.join(map(repr, get_args(Remat)))}")
    return nn.remat(resnet) if remat == "blocks" else resnet, attn if remat == "none" else nn.remat(attn)
