"""LPIPS: how different two images look, measured in the features of a network that was trained to name objects.

Shapes: images `b h w c`, RGB in [-1, 1]; a feature map has the same axes, its own `h w` and more channels.  The
published weights come from `flax_vae.train.losses.lpips_weights`.

Source: Zhang, Isola, Efros, Shechtman & Wang 2018 (arXiv:1801.03924); the arithmetic is that of the PyTorch package
`lpips` 0.1.4, `LPIPS(net=..., version="0.1", lpips=True, spatial=False)` in eval mode, where its dropout does nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from flax_vae.ops import Conv

NetName = Literal["vgg", "alex"]

# Mean and deviation of ImageNet's channels where black is -1 and white is 1.  The reference keeps them in float32, and
# computes with those roundings in float64 too.
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
_EPS = 1e-10


@dataclass(frozen=True)
class Stage:
    """The convolutions before one tap, each followed by a relu; the tap is what the last relu returns.

    Attributes:
      first: number of the first convolution within torchvision's `features`, from which the weights have their names;
        the next one is two further on, because the relus count too.
      widths: output channels of each convolution.
      kernel: its side in pixels.
      stride: its stride in pixels.
      padding: pixels of zeros on every side.
      pool: side of the max pooling of stride 2 before the first convolution; 0 for none.
    """

    first: int
    widths: tuple[int, ...]
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0

    @property
    def numbers(self) -> tuple[int, ...]:
        """Number of each convolution within torchvision's `features`."""
        return tuple(range(self.first, self.first + 2 * len(self.widths), 2))


Stages = tuple[Stage, ...]

NETS: dict[NetName, Stages] = {
    "vgg": (
        Stage(0, (64, 64)),
        Stage(5, (128, 128), pool=2),
        Stage(10, (256, 256, 256), pool=2),
        Stage(17, (512, 512, 512), pool=2),
        Stage(24, (512, 512, 512), pool=2),
    ),
    "alex": (
        Stage(0, (64,), kernel=11, stride=4, padding=2),
        Stage(3, (192,), kernel=5, padding=2, pool=3),
        Stage(6, (384,), pool=3),
        Stage(8, (256,)),
        Stage(10, (256,)),
    ),
}


def stages_of(net: str) -> Stages:
    """Returns the layers of a published network.

    Raises:
      ValueError: if there is no such network.
    """
    if net not in NETS:
        raise ValueError(f"there is no LPIPS network {net!r}; take one of {', '.join(NETS)}")
    return NETS[net]


def lpips(
    params: Mapping[str, Any],
    a: Float[Array, "b h w 3"],
    b: Float[Array, "b h w 3"],
    *,
    net: NetName = "vgg",
    dtype: Dtype | None = None,
) -> Float[Array, " b"]:
    """Perceptual distance of each pair of images; 0 for equal ones, mostly below 1.

    Gradients flow to both images.  In a compiled step pass `params` as an argument: what a program closes over becomes
    a constant in it, and VGG16's are 59 MB.

    Args:
      params: `load_lpips_weights(net)`.
      a: images in [-1, 1].
      b: the images to compare them with.
      net: `"vgg"` to train with, `"alex"` for the figures that papers report.
      dtype: of the convolutions, such as bfloat16; None follows images and parameters.  The rest is at least float32.

    Raises:
      ValueError: if the images are not RGB, differ in shape or are too small for the network, or if there is no such
        network.
    """
    return Lpips(stages_of(net), dtype).apply({"params": params}, a, b)  # pyright: ignore[reportReturnType]


class Lpips(nn.Module):
    """The distance as a module, whose parameters are named as the reference's: `net/slice1_0/kernel`, `lin_0/kernel`.

    Attributes:
      stages: layers of the feature network, one tap per stage.
      dtype: of the convolutions; None follows inputs and parameters.

    Source: see this file's head.
    """

    stages: Stages
    dtype: Dtype | None = None

    def setup(self):
        """The feature network, which both images pass, and one head per tap."""
        self.net = Features(self.stages, self.dtype)
        self.lin = [Head() for _ in self.stages]

    def __call__(self, a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
        """See `lpips`."""
        _check(self.stages, a.shape, b.shape)
        # Two passes, not one over both: then the gradient of `a` alone costs no backward pass for `b`.
        taps = zip(self.lin, self.net(_standardise(a)), self.net(_standardise(b)), strict=True)
        distances = [head((_to_unit_length(x) - _to_unit_length(y)) ** 2) for head, x, y in taps]
        return jnp.sum(jnp.stack(distances), axis=0)


class Features(nn.Module):
    """The convolutions of VGG16 or AlexNet; returns what each stage ends with.

    Attributes:
      stages: the layers.
      dtype: of the computation; None follows inputs and parameters.

    Source: torchvision `models/vgg.py`, `models/alexnet.py`, cut as `lpips/pretrained_networks.py` does.
    """

    stages: Stages
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> list[Float[Array, "b h2 w2 c"]]:
        """Returns the taps, from the finest to the coarsest."""
        taps = []
        for number, stage in enumerate(self.stages, start=1):
            if stage.pool:
                x = nn.max_pool(x, (stage.pool, stage.pool), strides=(2, 2))
            for index, width in zip(stage.numbers, stage.widths, strict=True):
                side = (stage.padding, stage.padding)
                conv = Conv(
                    width,
                    (stage.kernel, stage.kernel),
                    strides=stage.stride,
                    padding=(side, side),
                    dtype=self.dtype,
                    name=f"slice{number}_{index}",
                )
                x = nn.relu(conv(x))
            taps.append(x)
        return taps


class Head(nn.Module):
    """A learned weight per channel: the mean over all positions of the weighted sum.

    Fresh weights are ones, the distance without calibration.  Source: `lpips/lpips.py::NetLinLayer`.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, " b"]:
        """Returns one number per image."""
        kernel = self.param("kernel", nn.initializers.ones, (1, 1, x.shape[-1], 1))
        # No 1x1 convolution: an accelerator would round its factors to bfloat16.
        return jnp.mean(jnp.sum(x * kernel.reshape(1, 1, 1, -1), axis=-1), axis=(1, 2))


def _standardise(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    return (images - SHIFT.reshape(1, 1, 1, 3)) / SCALE.reshape(1, 1, 1, 3)


def _to_unit_length(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    # The square root has no derivative at 0.  Where all features are 0, the mask of the relu below hides that; where
    # they are so faint that only their squares are, the reference's gradient is NaN.  A constant has a derivative of 0.
    off = square == 0
    norm = jnp.where(off, 0, jnp.sqrt(jnp.where(off, 1, square)))
    return x / (norm + _EPS)


def _check(stages: Stages, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    least = smallest_side(stages)
    if a != b or len(a) != 4 or a[3] != 3 or min(a[1:3]) < least:
        raise ValueError(
            f"images of shapes {a} and {b} have no LPIPS distance; give two batches of one shape (b, h, w, 3), with h "
            f"and w at least {least}"
        )


def smallest_side(stages: Stages) -> int:
    """Returns the least height and width, in pixels, of which every tap still has a position."""
    side = 1
    for stage in reversed(stages):
        for _ in stage.widths:
            side = max((side - 1) * stage.stride + stage.kernel - 2 * stage.padding, 1)
        if stage.pool:
            side = (side - 1) * 2 + stage.pool
    return side
