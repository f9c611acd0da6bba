"""The architecture of the discriminator that autoencoders are trained against."""

from dataclasses import dataclass
from typing import Any

from flax_vae.convert.architecture.checks import SCALE_PIXELS, check_numbers

KERNEL = 4
WIDEST = 8  # no layer has more channels than this many times the first one's


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
