"""Converts the discriminator's weights between the frameworks: names and layouts of its tensors.

As in `flax_vae.convert.table.rows`, no names are matched by pattern: the architecture is expanded into the list of all
tensors, and both directions walk that list.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flax_vae.convert.architecture import KERNEL, DiscriminatorParams
from flax_vae.convert.errors import ConversionError
from flax_vae.convert.formats import ArrayLike
from flax_vae.convert.table.ops import CONV, SAME
from flax_vae.convert.table.rows import Row, flatten, require_floats, require_same, unflatten

# LDM's training checkpoints also hold the losses; there `main.0.weight` of the module has this prefix.
PREFIX = "loss.discriminator."

_COUNT = "/count"  # number of batches, the only leaf that is not a weight
_COUNTERS = "iu"  # dtype kinds
_LARGEST_COUNT = np.iinfo(np.int32).max


def discriminator_to_flax(
    state_dict: Mapping[str, ArrayLike], params: DiscriminatorParams, prefix: str = PREFIX
) -> dict[str, Any]:
    """Returns the Flax variables `{"params": ..., "batch_stats": ...}` of a state dict, as contiguous copies.

    Args:
      state_dict: Arrays by key; keys that do not begin with `prefix` are ignored.
      params: Architecture of the discriminator.
      prefix: Prefix of the keys; `""` for the state dict of the module itself.

    Raises:
      ConversionError: If a tensor is missing, unexpected or misshapen (one error lists them all), if a weight is an
        integer, or if a batch count is not a whole number that fits int32, the integer type of JAX.
    """
    rows = _expand(params, prefix)
    require_same(
        f"the tensors under {prefix!r} are not those of this discriminator",
        found={key: np.shape(array) for key, array in state_dict.items() if key.startswith(prefix)},
        expected={row.theirs: row.torch_shape for row in rows},
    )
    require_floats({row.theirs: state_dict[row.theirs] for row in rows if not row.ours.endswith(_COUNT)})
    leaves = {row.ours: np.array(row.op.to_flax(np.asarray(state_dict[row.theirs])), order="C") for row in rows}
    return unflatten({path: _count(path, leaf, "int32") for path, leaf in leaves.items()})


def discriminator_to_torch(
    variables: Mapping[str, Any], params: DiscriminatorParams, prefix: str = PREFIX
) -> dict[str, np.ndarray]:
    """Returns the state dict of Flax variables, as contiguous copies; the inverse of `discriminator_to_flax`.

    Args:
      variables: Nested dictionaries of arrays, `{"params": ..., "batch_stats": ...}`.
      params: Architecture of the discriminator.
      prefix: Prefix of every returned key.

    Raises:
      ConversionError: If a leaf is missing, unexpected or misshapen (one error lists them all), if a weight is an
        integer, or if a batch count is not a whole number.
    """
    rows, leaves = _expand(params, prefix), flatten(variables)
    require_same(
        "the variables are not those of this discriminator",
        found={path: np.shape(leaf) for path, leaf in leaves.items()},
        expected={row.ours: row.shape for row in rows},
    )
    require_floats({path: leaf for path, leaf in leaves.items() if not path.endswith(_COUNT)})
    leaves = {path: _count(path, np.asarray(leaf), "int64") for path, leaf in leaves.items()}
    return {row.theirs: np.array(row.op.to_torch(leaves[row.ours]), order="C") for row in rows}


def _expand(params: DiscriminatorParams, prefix: str) -> list[Row]:
    """Returns a row for every tensor, in the order in which the PyTorch module registers them."""
    rows: list[Row] = []

    def add(collection: str, place: int, ours: str, theirs: str, *shape: int) -> None:
        op = CONV if ours == "kernel" else SAME
        rows.append(Row(f"{collection}/main_{place}/{ours}", f"{prefix}main.{place}.{theirs}", op, shape))

    def add_conv(place: int, i: int, o: int, *, bias: bool) -> None:
        add("params", place, "kernel", "weight", KERNEL, KERNEL, i, o)
        if bias:
            add("params", place, "bias", "bias", o)

    place, width = 0, params.in_channels
    for first, out in zip((True, *(False,) * params.layers), params.widths, strict=True):
        add_conv(place, width, out, bias=first)
        if not first:
            add("params", place + 1, "scale", "weight", out)
            add("params", place + 1, "bias", "bias", out)
            add("batch_stats", place + 1, "mean", "running_mean", out)
            add("batch_stats", place + 1, "var", "running_var", out)
            add("batch_stats", place + 1, "count", "num_batches_tracked")
        place, width = place + (2 if first else 3), out
    add_conv(place, width, 1, bias=True)
    return rows


def _count(path: str, leaf: np.ndarray, dtype: str) -> np.ndarray:
    """Returns a batch count in another dtype, and any other leaf unchanged."""
    if not path.endswith(_COUNT):
        return leaf
    if leaf.dtype.kind not in _COUNTERS or not 0 <= leaf <= _LARGEST_COUNT:
        raise ConversionError(
            f"{path} is {leaf} ({leaf.dtype}); expected a whole number from 0 to {_LARGEST_COUNT}; set it to 0, since "
            "no result depends on it",
            path=path,
        )
    return leaf.astype(dtype)
