"""Tiny autoencoders: TAESD and its relatives, which imitate the encoder and decoder of a published model.

Feature maps have one width and no normalisation, so that decoding takes a small part of the model's time.

Shapes: `b` batch, `h w` height and width, `c` channels, `z` channels of the raw latent, `f` factor.  Feature maps are
`b c h w` in PyTorch and `b h w c` in Flax.  Twins: `torch_ref.tiny_autoencoder` and `flax_vae.tiny_autoencoder`.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from flax_vae.convert.architecture import (
    POOL_GROUPS,
    POOL_WIDENING,
    TinyAutoEncoderParams,
    check_image,
    check_latent,
    check_no_sample,
    check_time,
)
from torch_ref.latents import channel_statistics

POOL_EPS = 1e-5
LIMIT = 3  # of a latent's absolute values, which the decoder approaches smoothly


class TinyPool(nn.Module):
    """Two 1x1 convolutions around a normalisation, which brings statistics of the whole map to every position.

    Attributes:
      channels: Channels of input and output.

    Source: madebyollin/taesd `taesd.py::Block.pool`, of TAEF2.
    """

    def __init__(self, channels: int):
        super().__init__()
        wide = POOL_WIDENING * channels
        self.conv_in = nn.Conv2d(channels, wide, kernel_size=1, bias=False)
        self.norm = nn.GroupNorm(POOL_GROUPS, wide, eps=POOL_EPS)
        self.conv_out = nn.Conv2d(wide, channels, kernel_size=1, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Returns a feature map of the shape of `x`."""
        return self.conv_out(torch.relu(self.norm(self.conv_in(x))))


class TinyBlock(nn.Module):
    """Three 3x3 convolutions with ReLU between them, added to their input, and ReLU.

    Attributes:
      channels: Channels of input and output.
      pooled: Whether `TinyPool` is added to the input first.

    Source: madebyollin/taesd `taesd.py::Block`; diffusers `AutoencoderTinyBlock`.
    """

    def __init__(self, channels: int, pooled: bool = False):
        super().__init__()
        self.pooled = pooled
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        if pooled:
            self.pool = TinyPool(channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Returns a feature map of the shape of `x`."""
        if self.pooled:
            x = x + self.pool(x)
        h = torch.relu(self.conv1(x))
        h = torch.relu(self.conv2(h))
        return torch.relu(self.conv3(h) + x)


class TinyDownLevel(nn.Module):
    """One resolution of the encoder: blocks, and a convolution of stride 2 to the next.

    Attributes:
      params: Architecture.
      level: Number of the level; level 0 has the size of the image.
    """

    def __init__(self, params: TinyAutoEncoderParams, level: int):
        super().__init__()
        ch, last = params.ch, params.num_levels - 1
        blocks = params.encoder_blocks[level]
        self.block = nn.ModuleList([TinyBlock(ch, params.down_pools(level)) for _ in range(blocks)])
        self.downsample = nn.Conv2d(ch, ch, kernel_size=3, stride=2, padding=1, bias=False) if level != last else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Returns the input of the next level."""
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyUpLevel(nn.Module):
    """One resolution of the decoder: blocks, nearest-neighbour upsampling to the next and a convolution.

    Attributes:
      params: Architecture.
      level: Number of the level; level 0 has the size of the image.
    """

    def __init__(self, params: TinyAutoEncoderParams, level: int):
        super().__init__()
        ch, blocks = params.up_ch, params.decoder_blocks[level]
        self.block = nn.ModuleList([TinyBlock(ch, params.up_pools(level)) for _ in range(blocks)])
        self.upsample = nn.Conv2d(ch, ch, kernel_size=3, padding=1, bias=False) if level != 0 else None

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Returns the input of the next finer level."""
        for block in self.block:
            x = block(x)
        if self.upsample is None:
            return x
        return self.upsample(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class TinyEncoder(nn.Module):
    """Computes the raw latent of images.

    Attributes:
      params: Architecture.

    Source: madebyollin/taesd `taesd.py::Encoder`; diffusers `EncoderTiny`.
    """

    def __init__(self, params: TinyAutoEncoderParams):
        super().__init__()
        self.conv_in = nn.Conv2d(params.in_channels, params.ch, kernel_size=3, padding=1)
        self.down = nn.ModuleList([TinyDownLevel(params, level) for level in range(params.num_levels)])
        self.conv_out = nn.Conv2d(params.ch, params.z_channels, kernel_size=3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b z H W"]:
        """Returns the raw latent of images in [-1, 1]."""
        x = self.conv_in((x + 1) / 2)  # the published weights take images in [0, 1]
        for level in self.down:
            x = level(x)
        return self.conv_out(x)


class TinyDecoder(nn.Module):
    """Computes images of raw latents.

    Attributes:
      params: Architecture.

    Source: madebyollin/taesd `taesd.py::Decoder`; diffusers `DecoderTiny`.
    """

    def __init__(self, params: TinyAutoEncoderParams):
        super().__init__()
        self.conv_in = nn.Conv2d(params.z_channels, params.up_ch, kernel_size=3, padding=1)
        self.up = nn.ModuleList([TinyUpLevel(params, level) for level in range(params.num_levels)])
        self.conv_out = nn.Conv2d(params.up_ch, params.out_ch, kernel_size=3, padding=1)

    def forward(self, z: Float[Tensor, "b z H W"]) -> Float[Tensor, "b c h w"]:
        """Returns images, nominally in [-1, 1]."""
        x = torch.relu(self.conv_in(LIMIT * torch.tanh(z / LIMIT)))
        for level in reversed(self.up):
            x = level(x)
        return 2 * self.conv_out(x) - 1


class TinyAutoEncoder(nn.Module):
    """Encodes images to latents of the model that it imitates, as the diffusion model sees them, and decodes them.

    Methods and arguments are those of `AutoEncoder`, so that one can take the place of the other.  The encoder gives
    the latent itself: there is no posterior, nothing to sample and no time.

    Shapes: images `b c h w` in [-1, 1]; raw latents `b z H W`; latents `b c h/f w/f` with `f = params.factor` and
    `c = params.latent_channels`, equal to raw latents unless patches are gathered (`params.patch`).

    Attributes:
      params: Architecture.

    Source: madebyollin/taesd `taesd.py::TAESD`; diffusers `AutoencoderTiny`.
    """

    def __init__(self, params: TinyAutoEncoderParams):
        super().__init__()
        self.params = params
        self.encoder = TinyEncoder(params)
        self.decoder = TinyDecoder(params)

    def encode(
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, "b ..."] | None = None,
        *,
        sample: bool = False,
        noise: Float[Tensor, "b z H W"] | None = None,
    ) -> Float[Tensor, "b c h/f w/f"]:
        """Returns the latents of images.

        Args:
          x: Images in [-1, 1].
          time: None; see the class.
          sample: Whether to sample from the posterior, which must be False; see the class.
          noise: None; see the class.

        Raises:
          ValueError: If sizes or channels are wrong, or a time, noise or sampling is asked for.
        """
        check_no_sample(sample, noise)
        check_image(self.params, x, "b c h w")
        return self.scale(self.moments(x, time))

    def decode(
        self, z: Float[Tensor, "b c h w"], time: Float[Tensor, "b ..."] | None = None
    ) -> Float[Tensor, "b c h*f w*f"]:
        """Returns the images of latents, nominally in [-1, 1].

        Args:
          z: Latents.
          time: None; a tiny autoencoder takes no time.

        Raises:
          ValueError: If channels are wrong, or a time is given.
        """
        check_time(self.params, time, z.shape[0])
        return self.decoder(self.unscale(z))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, "b ..."] | None = None,
        *,
        sample: bool = False,
        noise: Float[Tensor, "b z H W"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Returns the reconstructions of images; arguments as for `encode`.

        Args:
          x: Images in [-1, 1].
          time: None; a tiny autoencoder takes no time.
          sample: False; there is no posterior to sample from.
          noise: None; see `sample`.
        """
        return self.decode(self.encode(x, time, sample=sample, noise=noise), time)

    def scale(self, z: Float[Tensor, "b z H W"]) -> Float[Tensor, "b c h w"]:
        """Returns the latent of a raw one: its patches, gathered into channels.

        Models with statistics per channel return the patches of `(z - latent_mean) / latent_std`.

        Args:
          z: Raw latents.
        """
        if self.params.normalises_channels:
            mean, std = channel_statistics(self.params, z)
            z = (z - mean) / std
        p = self.params.patch
        return rearrange(z, "b c (h pi) (w pj) -> b (c pi pj) h w", pi=p, pj=p)

    def unscale(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b z H W"]:
        """Returns the raw latent of a latent; the inverse of `scale`.

        Args:
          z: Latents.

        Raises:
          ValueError: If channels are wrong.
        """
        check_latent(self.params.latent_channels, z, "b c h w")
        p = self.params.patch
        z = rearrange(z, "b (c pi pj) h w -> b c (h pi) (w pj)", pi=p, pj=p)
        if self.params.normalises_channels:
            mean, std = channel_statistics(self.params, z)
            z = z * std + mean
        return z

    def moments(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b ..."] | None = None
    ) -> Float[Tensor, "b z H W"]:
        """Returns the encoder's output, which is the raw latent; `AutoEncoder` has the moments of a posterior here.

        Args:
          x: Images in [-1, 1].
          time: None; a tiny autoencoder takes no time.

        Raises:
          ValueError: If a time is given.
        """
        check_time(self.params, time, x.shape[0])
        return self.encoder(x)
