"""LPIPS: perceptual distance of two images, in the features of an image classifier.

Shapes: images `b h w c`, RGB in [-1, 1]; a feature map has the same axes, its own `h w` and more channels.  The
published weights come from `flax_vae.train.losses.lpips_weights`.

Source: Zhang, Isola, Efros, Shechtman & Wang 2018 (arXiv:1801.03924); computed as in the PyTorch package `lpips` 0.1.4,
`LPIPS(net=..., version="0.1", lpips=True, spatial=False)`, in eval mode, which disables its dropout.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

from flax_vae.convert.errors import ArgumentError
from flax_vae.ops import Conv

NetName = Literal["vgg", "alex"]

# Mean and standard deviation of ImageNet's channels for pixels in [-1, 1].  The reference stores them in float32, and
# uses these rounded values in float64 too.
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)
_EPS = 1e-10


@dataclass(frozen=True)
class Stage:
    """Convolutions before one tap, each followed by a ReLU; the tap is the output of the last ReLU.

    Attributes:
      first: Index of the first convolution in torchvision's `features`, which gives the weights their names; the
        indices of further ones increase by two, because ReLUs count too.
      widths: Output channels of each convolution.
      kernel: Side of the kernel in pixels.
      stride: Stride in pixels.
      padding: Zero padding on every side in pixels.
      pool: Side of the max pooling of stride 2 before the first convolution; 0 for none.
    """

    first: int
    widths: tuple[int, ...]
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0

    @property
    def numbers(self) -> tuple[int, ...]:
        """Index of each convolution in torchvision's `features`."""
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
    """Returns the stages of a published network.

    Args:
      net: Name of the network.

    Raises:
      ValueError: If the network is unknown.
    """
    if net not in NETS:
        raise ArgumentError(f"unknown LPIPS network {net!r}; expected one of {', '.join(NETS)}")
    return NETS[net]


def lpips(
    params: Mapping[str, Any],
    a: Float[Array, "b h w 3"],
    b: Float[Array, "b h w 3"],
    *,
    net: NetName = "vgg",
    dtype: Dtype | None = None,
    sizes: Int[Array, "b 2"] | None = None,
) -> Float[Array, " b"]:
    """Returns the perceptual distance of each pair of images; 0 for equal images, mostly below 1.

    Gradients flow to both images.  In a compiled step pass `params` as an argument: a closed-over array becomes a
    constant of the program, and VGG16's are 59 MB.

    Args:
      params: Weights, `load_lpips_weights(net)`.
      a: Images in [-1, 1].
      b: Images to compare with, of the shape of `a`.
      net: `"vgg"` for training, `"alex"` for the values that papers report.
      dtype: Dtype of the convolutions, bfloat16 for example; None infers it from images and parameters.  All other
        computations are in at least float32.
      sizes: Height and width of the part at the top left of each pair that is compared, as if it had been cut out; one
        program then serves images of all sizes.  None compares whole images.

    Raises:
      ValueError: If the images are not RGB, differ in shape or are too small for the network, or if the network is
        unknown.
    """
    return Lpips(stages_of(net), dtype).apply({"params": params}, a, b, sizes)  # pyright: ignore[reportReturnType]


class Lpips(nn.Module):
    """LPIPS as a module; its parameters have the reference's names: `net/slice1_0/kernel`, `lin_0/kernel`.

    Attributes:
      stages: Stages of the feature network, one tap per stage.
      dtype: Dtype of the convolutions; None infers it from inputs and parameters.

    Source: see the top of this file.
    """

    stages: Stages
    dtype: Dtype | None = None

    def setup(self):
        """Creates the feature network, which both images use, and one head per tap."""
        self.net = Features(self.stages, self.dtype)
        self.lin = [Head() for _ in self.stages]

    def __call__(
        self, a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"], sizes: Int[Array, "b 2"] | None = None
    ) -> Float[Array, " b"]:
        """Returns the distance of each pair of images; see `lpips`."""
        _check(self.stages, a.shape, b.shape)
        # Two passes instead of a joint one: the gradient of `a` alone then needs no backward pass for `b`.
        taps = zip(
            self.lin,
            self.net(_standardise(a), sizes),
            self.net(_standardise(b), sizes),
            _tap_sizes(self.stages, sizes),
            strict=True,
        )
        distances = [head((to_unit_length(x) - to_unit_length(y)) ** 2, size) for head, x, y, size in taps]
        return jnp.sum(jnp.stack(distances), axis=0)


class Features(nn.Module):
    """Computes the features of VGG16 or AlexNet at the end of each stage.

    Attributes:
      stages: Stages of the network.
      dtype: Computation dtype; None infers it from inputs and parameters.

    Source: torchvision `models/vgg.py`, `models/alexnet.py`, cut as `lpips/pretrained_networks.py` does.
    """

    stages: Stages
    dtype: Dtype | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], sizes: Int[Array, "b 2"] | None = None
    ) -> list[Float[Array, "b h2 w2 c"]]:
        """Returns the taps, finest first.

        Args:
          x: Standardised images.
          sizes: Height and width of the part of each image to use; taps are 0 outside of it.
        """
        taps = []
        x = _inside(x, sizes)  # beyond its edge an image is 0, as the padding of convolutions is
        for number, stage in enumerate(self.stages, start=1):
            if stage.pool:
                x = nn.max_pool(x, (stage.pool, stage.pool), strides=(2, 2))
                sizes = _after_pool(sizes, stage)
                x = _inside(x, sizes)
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
                sizes = _after_conv(sizes, stage)
                x = _inside(nn.relu(conv(x)), sizes)
            taps.append(x)
        return taps


class Head(nn.Module):
    """Weighs the channels with learned weights and averages their sum over all positions.

    Initial weights are ones, the uncalibrated distance.  Source: `lpips/lpips.py::NetLinLayer`.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"] | None = None) -> Float[Array, " b"]:
        """Returns one value per image, averaged over its part of `sizes`, outside of which `x` is 0."""
        kernel = self.param("kernel", nn.initializers.ones, (1, 1, x.shape[-1], 1))
        # Not a 1x1 convolution: an accelerator would round its inputs to bfloat16.
        weighed = jnp.sum(x * kernel.reshape(1, 1, 1, -1), axis=-1)
        if sizes is None:
            return jnp.mean(weighed, axis=(1, 2))
        return jnp.sum(weighed, axis=(1, 2)) / jnp.prod(sizes, axis=1).astype(weighed.dtype)


def _standardise(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    images = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    return (images - SHIFT.reshape(1, 1, 1, 3)) / SCALE.reshape(1, 1, 1, 3)


def to_unit_length(x: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """Returns vectors of length 1, or of 0 where all features are 0, which have no gradient."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    # The square root has no derivative at 0.  Where all features are 0, the mask of the ReLU below hides that; where
    # they are so small that their squares are 0, the reference's gradient is NaN.  A constant has derivative 0.
    off = square == 0
    norm = jnp.where(off, 0, jnp.sqrt(jnp.where(off, 1, square)))
    return x / (norm + _EPS)


def _after_conv(sizes: Any, stage: Stage) -> Any:
    """Returns height and width after a convolution; None for whole images."""
    return None if sizes is None else (sizes + 2 * stage.padding - stage.kernel) // stage.stride + 1


def _after_pool(sizes: Any, stage: Stage) -> Any:
    return None if sizes is None else (sizes - stage.pool) // 2 + 1


def _tap_sizes(stages: Stages, sizes: Int[Array, "b 2"] | None) -> list[Any]:
    """Returns height and width of each tap."""
    found = []
    for stage in stages:
        sizes = _after_pool(sizes, stage) if stage.pool else sizes
        for _ in stage.widths:
            sizes = _after_conv(sizes, stage)
        found.append(sizes)
    return found


def _inside(x: Float[Array, "b h w c"], sizes: Int[Array, "b 2"] | None) -> Float[Array, "b h w c"]:
    """Returns a map that is 0 outside of the part of `sizes`."""
    if sizes is None:
        return x
    rows, columns = (jnp.arange(side)[None] < sizes[:, axis, None] for axis, side in enumerate(x.shape[1:3]))
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], x, 0)


def _check(stages: Stages, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    least = smallest_side(stages)
    if a != b or len(a) != 4 or a[3] != 3 or min(a[1:3]) < least:
        raise ArgumentError(
            f"images have shapes {a} and {b}; expected two batches of one shape (b, h, w, 3), with h and w at least "
            f"{least}"
        )


def smallest_side(stages: Stages) -> int:
    """Returns the smallest height and width, in pixels, for which every tap has at least one position.

    Args:
      stages: Stages of the network; see `stages_of`.
    """
    side = 1
    for stage in reversed(stages):
        for _ in stage.widths:
            side = max((side - 1) * stage.stride + stage.kernel - 2 * stage.padding, 1)
        if stage.pool:
            side = (side - 1) * 2 + stage.pool
    return side
