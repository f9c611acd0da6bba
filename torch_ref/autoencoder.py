"""The autoencoder: encoder, posterior, scaled latents, decoder.

Twins: `torch_ref.autoencoder` and `flax_vae.autoencoder`.
"""

from jaxtyping import Float
from torch import Tensor, nn

from flax_vae.convert.architecture import AutoEncoderParams, check_image, check_latent, check_time
from torch_ref.coders import Decoder, Encoder
from torch_ref.embedding import TimeEmb, sinusoidal_embedding
from torch_ref.gaussian import DiagonalGaussian, Posterior
from torch_ref.latents import LatentNorm, channel_statistics
from torch_ref.tiny_autoencoder import TinyAutoEncoder


class AutoEncoder(nn.Module):
    """Encodes images to scaled latents and decodes them.

    Shapes: images `b c h w` in [-1, 1]; raw latents `b z H W`; scaled latents `b c h/f w/f` with `f = params.factor`
    and `c = params.latent_channels`, equal to raw shapes except under `LatentNorm`.  `time` has shape `b t`
    (`time_embedding="linear"`) or `b` (`"sinusoidal"`), and is left out if `params.time_emb_dim` is None.

    Attributes:
      params: Architecture.

    Examples:
      >>> model = AutoEncoder(PRESETS["tiny"])
      >>> model.encode(torch.zeros(1, 3, 32, 48), sample=False).shape
      torch.Size([1, 16, 8, 12])

    Source: seed module 8; black-forest-labs/flux `modules/autoencoder.py::AutoEncoder`; the quant convolutions are
    CompVis/latent-diffusion's `AutoencoderKL`.
    """

    def __init__(self, params: AutoEncoderParams):
        super().__init__()
        self.params = params
        self.encoder = Encoder(params)
        self.decoder = Decoder(params)
        self.reg = DiagonalGaussian(learnable_logvar=params.learnable_logvar, clamp_logvar=params.clamp_logvar)
        if params.quant_conv:
            self.quant_conv = nn.Conv2d(2 * params.z_channels, 2 * params.z_channels, kernel_size=1)
        if params.pre_decoder_conv:
            self.post_quant_conv = nn.Conv2d(params.z_channels, params.z_channels, kernel_size=1)
        if params.latent_norm == "batch_norm":
            self.bn = LatentNorm(params.latent_channels, params.batch_norm_eps)
        if params.time_emb_dim is not None:
            self.time_embed = nn.Linear(params.time_emb_dim, params.time_emb_dim)

    def encode(
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, "b ..."] | None = None,
        *,
        sample: bool = True,
        noise: Float[Tensor, "b z H W"] | None = None,
    ) -> Float[Tensor, "b c h/f w/f"]:
        """Returns the scaled latents of images; see `scale`.

        Args:
          x: Images in [-1, 1].
          time: Time condition; see the class.
          sample: Whether to sample z from the posterior, as in the seed; otherwise z is its mean.
          noise: Standard normal noise for sampling, for results that can be compared across frameworks.

        Raises:
          ValueError: If sizes or channels are wrong, or if `time` or `noise` is missing, superfluous or misshapen.
        """
        check_image(self.params, x, "b c h w")
        z = self.reg(self.moments(x, time), sample=sample, noise=noise)
        return self.scale(z)

    def decode(
        self, z: Float[Tensor, "b c h w"], time: Float[Tensor, "b ..."] | None = None
    ) -> Float[Tensor, "b c h*f w*f"]:
        """Returns the images of scaled latents, nominally in [-1, 1].

        Args:
          z: Scaled latents.
          time: Time condition; see the class.

        Raises:
          ValueError: If channels are wrong, or if `time` is missing, superfluous or misshapen.
        """
        time_emb = self.embed_time(time, batch=z.shape[0])
        z = self.unscale(z)
        if self.params.pre_decoder_conv:
            z = self.post_quant_conv(z)
        return self.decoder(z, time_emb)

    def posterior(self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b ..."] | None = None) -> Posterior:
        """Returns the posterior of images, over raw latents.

        Args:
          x: Images in [-1, 1].
          time: Time condition; see the class.

        Raises:
          ValueError: As for `encode`.
        """
        return self.reg.posterior(self.moments(x, time))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, "b ..."] | None = None,
        *,
        sample: bool = True,
        noise: Float[Tensor, "b z H W"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Returns the reconstructions of images; arguments as for `encode`.

        Args:
          x: Images in [-1, 1].
          time: Time condition; see the class.
          sample: Whether to sample the latent; otherwise its mode is decoded.
          noise: Standard normal noise of the sample, with the shape of a raw latent; None draws it.
        """
        return self.decode(self.encode(x, time, sample=sample, noise=noise), time)

    def scale(self, z: Float[Tensor, "b z H W"]) -> Float[Tensor, "b c h w"]:
        """Returns the scaled latent of a raw one: `scale_factor * (z - shift_factor)`, or that of `LatentNorm`.

        Models with statistics per channel return `scale_factor * (z - latent_mean) / latent_std`.

        Args:
          z: Raw latents.
        """
        if self.params.latent_norm == "batch_norm":
            return self.bn.normalise(z)
        mean, std = channel_statistics(self.params, z)
        return self.params.scale_factor * (z - mean) / std

    def unscale(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b z H W"]:
        """Returns the raw latent of a scaled one; the inverse of `scale`.

        Args:
          z: Scaled latents.

        Raises:
          ValueError: If channels are wrong.
        """
        check_latent(self.params.latent_channels, z, "b c h w")
        if self.params.latent_norm == "batch_norm":
            return self.bn.denormalise(z)
        mean, std = channel_statistics(self.params, z)
        return z * std / self.params.scale_factor + mean

    def moments(
        self, x: Float[Tensor, "b c h w"], time: Float[Tensor, "b ..."] | None = None
    ) -> Float[Tensor, "b 2*z h/f w/f"]:
        """Returns the raw moments, from which `DiagonalGaussian` takes mean and logvar along the channels.

        Args:
          x: Images in [-1, 1].
          time: Time condition; see the class.
        """
        time_emb = self.embed_time(time, batch=x.shape[0])
        moments = self.encoder(x, time_emb)
        return self.quant_conv(moments) if self.params.quant_conv else moments

    def embed_time(self, time: Float[Tensor, "b ..."] | None, batch: int) -> TimeEmb:
        """Returns the time embedding that every residual block receives, or None for a model without time.

        Args:
          time: Time of each image, or None.
          batch: Number of images or latents.

        Raises:
          ValueError: If `time` is missing, superfluous or misshapen.
        """
        check_time(self.params, time, batch)
        if time is None or self.params.time_emb_dim is None:
            return None
        if self.params.time_embedding == "sinusoidal":
            time = sinusoidal_embedding(time, self.params.time_emb_dim)
        return self.time_embed(time)


Model = AutoEncoder | TinyAutoEncoder
