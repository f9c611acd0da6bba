"""A start from which a small model learns quickly: every block passes its input on, and so do the last norms."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from flax_vae.convert.architecture import NORM_GROUPS, AutoEncoderParams

_CONTRAST = 20.0  # large beside the stream's own values, which are of order 1


def identity_init(params: dict[str, Any], record: AutoEncoderParams) -> dict[str, Any]:
    """Changes fresh weights so that the stream runs through both halves of the model unhindered.

    1. The last convolution of each residual branch, attention included, becomes zero: the blocks start as identities.
    2. The norm before each half's last convolution starts as the identity too, nearly.  A group norm subtracts a mean
       and divides by a deviation in each of its groups, which for the few channels per group of a small model is most
       of the brightness and contrast of an image.  So the channels of a group get different constants beside which
       the image is small; those set mean and deviation, and the norm's own scale and bias take them away again.

    With one channel per group nothing can be saved, and the norms stay as they were; with two, half as much as with
    three or more.

    Args:
      params: as `init_params` makes them.
      record: the architecture.

    Returns:
      Parameters of the same shapes.

    Source: (1) Goyal et al. 2017, section 5.1; Zhang, Dauphin & Ma 2019.
    """
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(params, sep="/"))
    for name in flat:
        if name.endswith(("conv2/kernel", "proj_out/kernel")):
            flat[name] = jnp.zeros_like(flat[name])
    last_blocks = {"encoder": "mid/block_2", "decoder": f"up_0/block_{record.num_res_blocks}"}
    for half, block in last_blocks.items():
        offsets = group_offsets(flat[f"{half}/norm_out/scale"].size)
        deviation = float(offsets.std())
        if deviation > 0:
            flat[f"{half}/{block}/conv2/bias"] += offsets
            flat[f"{half}/norm_out/scale"] *= deviation
            flat[f"{half}/norm_out/bias"] -= offsets
    return traverse_util.unflatten_dict(flat, sep="/")


def group_offsets(channels: int) -> Float[np.ndarray, " c"]:
    """Constants for the channels of a stream, evenly spaced around zero within each group of a norm."""
    per_group = channels // NORM_GROUPS
    # Three or more leave directions in which a constant passes the norm: an image's brightness takes those.
    spread = np.linspace(-_CONTRAST, _CONTRAST, per_group) if per_group > 1 else np.zeros(1)
    return np.tile(spread, NORM_GROUPS).astype(np.float32)
