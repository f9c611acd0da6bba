"""Identity initialisation: residual branches and output norms start as identities."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from flax_vae.convert.architecture import NORM_GROUPS, AutoEncoderParams

_CONTRAST = 20.0  # large compared with the activations, which are of order 1


def identity_init(params: dict[str, Any], architecture: AutoEncoderParams) -> dict[str, Any]:
    """Changes initial weights so that encoder and decoder pass their input on; a small model then learns faster.

    1. The last convolution of each residual branch, attention included, is set to zero: blocks start as identities.
    2. The norm before the last convolution of encoder and decoder starts nearly as the identity.  A group norm
       subtracts the mean and divides by the standard deviation of each group.  In a small model with few channels per
       group, that removes most of an image's brightness and contrast.  Therefore each channel of a group is shifted by
       a different constant, large compared with the activations.  The constants determine mean and deviation, and the
       norm's scale and bias undo both.

    With one channel per group the norms stay unchanged.  With two, half as much of the image is kept as with three or
    more.

    Args:
      params: Result of `init_params`.
      architecture: Architecture of the model.

    Returns:
      Parameters of unchanged shapes.

    Source: (1) Goyal et al. 2017, section 5.1; Zhang, Dauphin & Ma 2019.
    """
    flat: dict[str, Any] = dict(traverse_util.flatten_dict(params, sep="/"))
    for name in flat:
        if name.endswith(("conv2/kernel", "proj_out/kernel")):
            flat[name] = jnp.zeros_like(flat[name])
    last_blocks = {"encoder": "mid/block_2", "decoder": f"up_0/block_{architecture.num_res_blocks}"}
    for half, block in last_blocks.items():
        offsets = group_offsets(flat[f"{half}/norm_out/scale"].size)
        deviation = float(offsets.std())
        if deviation > 0:
            flat[f"{half}/{block}/conv2/bias"] += offsets
            flat[f"{half}/norm_out/scale"] *= deviation
            flat[f"{half}/norm_out/bias"] -= offsets
    return traverse_util.unflatten_dict(flat, sep="/")


def group_offsets(channels: int) -> Float[np.ndarray, " c"]:
    """Returns a constant for each channel, evenly spaced around zero within each group of a norm."""
    per_group = channels // NORM_GROUPS
    # With three or more channels, a direction remains in which the norm keeps a constant, such as brightness.
    spread = np.linspace(-_CONTRAST, _CONTRAST, per_group) if per_group > 1 else np.zeros(1)
    return np.tile(spread, NORM_GROUPS).astype(np.float32)
