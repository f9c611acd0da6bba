"""The PatchGAN discriminator: classifies patches of an image instead of the whole image.

Shapes: `b` batch, `c` channels, `h w` height and width.  Feature maps are `b c h w` in PyTorch and `b h w c` in Flax.
Twins: `torch_ref.discriminator` and `flax_vae.discriminator`.
"""

from jaxtyping import Float
from torch import Tensor, nn

from flax_vae.convert.architecture import KERNEL, DiscriminatorParams

NORM_EPS = 1e-5
MOMENTUM = 0.1  # weight of the new batch in the running statistics
SLOPE = 0.2
STD = 0.02  # standard deviation of initial kernels (mean 0) and scales (mean 1)


def conv(in_channels: int, features: int, stride: int, *, bias: bool) -> nn.Conv2d:
    """Returns a 4x4 convolution with one pixel of padding; its bias is initialised as in PyTorch, as in the source."""
    module = nn.Conv2d(in_channels, features, KERNEL, stride, padding=1, bias=bias)
    nn.init.normal_(module.weight, 0, STD)
    return module


class BatchNorm(nn.BatchNorm2d):
    """Normalises every channel over batch and positions to mean 0 and variance 1, then scales and shifts it.

    The running variance is the unbiased one, `n / (n - 1)` times the variance of the normalisation.

    Attributes:
      channels: Channels of input and output.

    Source: Ioffe and Szegedy 2015 (arXiv:1502.03167).
    """

    def __init__(self, channels: int):
        super().__init__(channels, NORM_EPS, MOMENTUM)
        nn.init.normal_(self.weight, 1, STD)


class Discriminator(nn.Module):
    """Computes a logit for every patch of an image; positive means real.

    The first convolution is not normalised and the last returns the logits; a batch norm follows each of the others.

    Attributes:
      params: Architecture; see `flax_vae.convert.architecture.DiscriminatorParams`.

    Source: Isola et al. 2017 (arXiv:1611.07004); CompVis/taming-transformers `NLayerDiscriminator`.
    """

    def __init__(self, params: DiscriminatorParams):
        super().__init__()
        self.params = params
        first, *widths = params.widths
        main: list[nn.Module] = [conv(params.in_channels, first, params.strides[0], bias=True), nn.LeakyReLU(SLOPE)]
        for i, o, stride in zip(params.widths, widths, params.strides[1:], strict=False):
            main += [conv(i, o, stride, bias=False), BatchNorm(o), nn.LeakyReLU(SLOPE)]
        self.main = nn.Sequential(*main, conv(params.widths[-1], 1, 1, bias=True))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h2 w2"]:
        """Returns the logits of images in [-1, 1].

        In `train()` mode, normalises with the statistics of the batch and updates the running ones; in `eval()` mode,
        uses the running ones.

        Args:
          images: Images in [-1, 1].

        Raises:
          ValueError: If the images have wrong channels or are too small, or, in training, if a layer has a single value
            per channel in the batch.
        """
        self.params.check_images(images, "b c h w")
        return self.main(images)
