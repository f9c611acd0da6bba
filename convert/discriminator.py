"""The discriminator that autoencoders are trained against: its record, and its weights' names and layouts.

As in `convert.table`, nothing is matched: the record is expanded into the list of all tensors, and both directions walk
that list.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.checks import SCALE_PIXELS, check_numbers
from convert.errors import ConversionError
from convert.files import ArrayLike
from convert.ops import CONV, SAME
from convert.table import Row, flatten, require_floats, require_same, unflatten

KERNEL = 4
WIDEST = 8  # no layer has more channels than this many times the first one's

# How LDM's training checkpoints, which hold the losses as well, call what is `main.0.weight` in the module itself.
PREFIX = "loss.discriminator."

_COUNT = "/count"  # of batches, the one leaf that is no weight
_COUNTERS = "iu"  # kinds of dtype
_LARGEST_COUNT = np.iinfo(np.int32).max


@dataclass(frozen=True)
class DiscriminatorParams:
    """What a discriminator is, apart from its weights.

    Attributes:
      in_channels: of the images.
      features: channels of the first convolution; each of the next has twice as many, up to eight times.
      layers: convolutions that halve height and width.  A logit sees 70 x 70 pixels with three of them.

    Raises:
      ValueError: if a field is not a whole number of at least 1.

    Source: CompVis/taming-transformers `NLayerDiscriminator` (`input_nc`, `ndf`, `n_layers`).
    """

    in_channels: int = 3
    features: int = 64
    layers: int = 3

    def __post_init__(self):
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels behind each convolution but the last, which has one; all but the first are normalised."""
        return tuple(self.features * min(2**n, WIDEST) for n in range(self.layers + 1))

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the same convolutions."""
        return (*(2 for _ in range(self.layers)), 1)

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest image that gives a logit: the last two convolutions take a pixel each."""
        return 3 * 2**self.layers

    def check_images(self, images: Any, axes: str) -> None:
        """Refuses images with other channels, too small for a single logit, of no floats, or none at all.

        Args:
          images: the batch, an array or a tensor.
          axes: their names in order, `"b h w c"` or `"b c h w"`.

        Raises:
          ValueError: naming the value, what was expected and the remedy.
        """
        names, shape = axes.split(), tuple(images.shape)
        if len(shape) != len(names):
            raise ValueError(f"images have shape {shape}, which is no {axes!r}; give all {len(names)} axes")
        size = dict(zip(names, shape, strict=True))
        check_numbers(images, "images", SCALE_PIXELS)
        if size["c"] != self.in_channels:
            raise ValueError(
                f"images of shape {shape} have {size['c']} channels as {axes!r}, the discriminator takes "
                f"{self.in_channels}"
            )
        if min(size["h"], size["w"]) < self.smallest:
            raise ValueError(
                f"images are {size['h']} x {size['w']} (height x width), a discriminator of layers={self.layers} takes "
                f"{self.smallest} x {self.smallest} or more; use larger ones, or fewer layers"
            )


def discriminator_to_flax(
    state_dict: Mapping[str, ArrayLike], params: DiscriminatorParams, prefix: str = PREFIX
) -> dict[str, Any]:
    """Returns the Flax variables `{"params": ..., "batch_stats": ...}` of a state dict, as contiguous copies.

    Args:
      state_dict: key to numpy array; keys that do not begin with `prefix` belong to others and are left out.
      params: the discriminator that it belongs to.
      prefix: `""` for the state dict of the module itself.

    Raises:
      ConversionError: if a tensor is missing, unexpected or misshapen, one error lists them all; if a weight is an
        integer; or if a count of batches is none, or too large for the int32 that JAX has.
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
      variables: `{"params": ..., "batch_stats": ...}`, nested dictionaries of arrays.
      params: the discriminator that they belong to.
      prefix: put before every key.

    Raises:
      ConversionError: if a leaf is missing, unexpected or misshapen, one error lists them all; if a weight is an
        integer; or if a count of batches is none.
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
    """Every tensor, in the order in which the PyTorch module registers them."""
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
    """A count of batches in another dtype; every other leaf as it is."""
    if not path.endswith(_COUNT):
        return leaf
    if leaf.dtype.kind not in _COUNTERS or not 0 <= leaf <= _LARGEST_COUNT:
        raise ConversionError(
            f"{path} is {leaf} ({leaf.dtype}), a whole number from 0 to {_LARGEST_COUNT} was expected; set it to 0 to "
            "go on, since no result depends on it"
        )
    return leaf.astype(dtype)
