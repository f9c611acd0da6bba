"""The architecture of the discriminator used for adversarial training."""

from dataclasses import dataclass
from typing import Any

from flax_vae.convert.architecture.checks import SCALE_PIXELS, check_numbers
from flax_vae.convert.errors import ArgumentError

KERNEL = 4
WIDEST = 8  # a layer has at most this many times the channels of the first one


@dataclass(frozen=True)
class DiscriminatorParams:
    """Architecture of a PatchGAN discriminator.

    Attributes:
      in_channels: Channels of the images.
      features: Channels of the first convolution; each further one has twice as many, up to eight times.
      layers: Number of convolutions that halve height and width.  With three, a logit covers 70 x 70 pixels.

    Raises:
      ValueError: If a field is not a whole number of at least 1.

    Source: CompVis/taming-transformers `NLayerDiscriminator` (`input_nc`, `ndf`, `n_layers`).
    """

    in_channels: int = 3
    features: int = 64
    layers: int = 3

    def __post_init__(self):
        for name, value in vars(self).items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"{name}={value!r} must be a whole number of at least 1", field=name, value=value)

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of every convolution but the last, which has one; all but the first are normalised."""
        return tuple(self.features * min(2**n, WIDEST) for n in range(self.layers + 1))

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the convolutions in `widths`."""
        return (*(2 for _ in range(self.layers)), 1)

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest image that gives a logit; the last two convolutions remove a pixel each."""
        return 3 * 2**self.layers

    def check_images(self, images: Any, axes: str) -> None:
        """Checks that the discriminator can take a batch of images: axes, channels, size, dtype.

        Args:
          images: Batch of images, an array or a tensor.
          axes: Names of the axes in order, `"b h w c"` or `"b c h w"`.

        Raises:
          ValueError: Names the value, the expected one and the remedy.
        """
        names, shape = axes.split(), tuple(images.shape)
        if len(shape) != len(names):
            raise ArgumentError(f"images have shape {shape}; expected {axes!r}; pass all {len(names)} axes")
        size = dict(zip(names, shape, strict=True))
        check_numbers(images, "images", SCALE_PIXELS)
        if size["c"] != self.in_channels:
            raise ArgumentError(
                f"images of shape {shape} have {size['c']} channels as {axes!r}; the discriminator expects "
                f"{self.in_channels}"
            )
        if min(size["h"], size["w"]) < self.smallest:
            raise ArgumentError(
                f"images are {size['h']} x {size['w']} (height x width); a discriminator of layers={self.layers} needs "
                f"{self.smallest} x {self.smallest} or more; use larger ones, or fewer layers"
            )
