"""The autoencoder: encoder, posterior, scaled latents, decoder.

Twins: `torch_ref.autoencoder` and `flax_vae.autoencoder`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, PRNGKeyArray

from flax_vae.attention import AttentionPath
from flax_vae.coders import Decoder, Encoder
from flax_vae.convert.architecture import AutoEncoderParams, check_image, check_latent, check_time
from flax_vae.embedding import TimeEmb, sinusoidal_embedding
from flax_vae.gaussian import DiagonalGaussian, Posterior
from flax_vae.latents import LatentNorm, channel_statistics
from flax_vae.numerics import Numerics, Remat
from flax_vae.tiny_autoencoder import TinyAutoEncoder


class AutoEncoder(nn.Module):
    """Encodes images to scaled latents and decodes them.

    Shapes: images `b h w c` in [-1, 1]; raw latents `b H W z`; scaled latents `b h/f w/f c` with `f = params.factor`
    and `c = params.latent_channels`, equal to raw shapes except under `LatentNorm`.  `time` has shape `b t`
    (`time_embedding="linear"`) or `b` (`"sinusoidal"`), and is left out if `params.time_emb_dim` is None.

    Attributes:
      params: Architecture.
      dtype: Computation dtype; see `Numerics`.
      param_dtype: Dtype of the parameters that `init` creates.
      remat: Blocks whose activations the backward pass recomputes; see `Numerics`.
      attention: Path of attention; see `Numerics`.

    Examples:
      >>> model = AutoEncoder(PRESETS["tiny"])
      >>> params = init_params(model, jax.random.key(0))
      >>> encode = jax.jit(lambda images: model.apply({"params": params}, images, sample=False, method="encode"))
      >>> encode(jnp.zeros((1, 32, 48, 3))).shape
      (1, 8, 12, 16)

    Raises:
      ValueError: If a dtype, `remat` or `attention` is unknown.

    Source: seed module 8; black-forest-labs/flux `modules/autoencoder.py::AutoEncoder`; the quant convolutions are
    CompVis/latent-diffusion's `AutoencoderKL`.
    """

    params: AutoEncoderParams
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    remat: Remat = "none"
    attention: AttentionPath = "auto"

    def __post_init__(self):
        _ = self.numerics  # an unknown value is an error here, not in the first call
        super().__post_init__()

    @property
    def numerics(self) -> Numerics:
        """Computation options of the model as one record."""
        return Numerics(self.dtype, self.param_dtype, self.remat, self.attention)

    def setup(self):
        params, numerics = self.params, self.numerics
        self.encoder = Encoder(params, numerics)
        self.decoder = Decoder(params, numerics)
        self.reg = DiagonalGaussian(
            learnable_logvar=params.learnable_logvar, clamp_logvar=params.clamp_logvar, param_dtype=self.param_dtype
        )
        if params.quant_conv:
            self.quant_conv = numerics.conv(2 * params.z_channels, 1)
        if params.pre_decoder_conv:
            self.post_quant_conv = numerics.conv(params.z_channels, 1)
        if params.latent_norm == "batch_norm":
            self.bn = LatentNorm(params.latent_channels, params.batch_norm_eps, self.param_dtype)
        if params.time_emb_dim is not None:
            self.time_embed = numerics.dense(params.time_emb_dim)

    def encode(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b ..."] | None = None,
        *,
        sample: bool = True,
        noise: Float[Array, "b H W z"] | None = None,
    ) -> Float[Array, "b h/f w/f c"]:
        """Returns the scaled latents of images; see `scale`.

        Args:
          x: Images in [-1, 1].
          time: Time condition; see the class.
          sample: Whether to sample z from the posterior, as in the seed; otherwise z is its mean.
          noise: Standard normal noise for sampling, for results that can be compared across frameworks; without it,
            pass `rngs={"sample": key}`.

        Raises:
          ValueError: If sizes or channels are wrong, if `time` or `noise` is missing, superfluous or misshapen, or if
            neither noise nor a key is given for sampling.
        """
        check_image(self.params, x, "b h w c")
        z = self.reg(self.moments(x, time), sample=sample, noise=noise)
        return self.scale(z)

    def decode(
        self, z: Float[Array, "b h w c"], time: Float[Array, "b ..."] | None = None
    ) -> Float[Array, "b h*f w*f c"]:
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

    def posterior(self, x: Float[Array, "b h w c"], time: Float[Array, "b ..."] | None = None) -> Posterior:
        """Returns the posterior of images, over raw latents.

        Args:
          x: Images in [-1, 1].
          time: Time condition; see the class.

        Raises:
          ValueError: As for `encode`.
        """
        return self.reg.posterior(self.moments(x, time))

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b ..."] | None = None,
        *,
        sample: bool = True,
        noise: Float[Array, "b H W z"] | None = None,
    ) -> Float[Array, "b h w c"]:
        """Returns the reconstructions of images; arguments as for `encode`.

        Args:
          x: Images in [-1, 1].
          time: Time condition; see the class.
          sample: Whether to sample the latent; otherwise its mode is decoded.
          noise: Standard normal noise of the sample, with the shape of a raw latent; None draws it.
        """
        return self.decode(self.encode(x, time, sample=sample, noise=noise), time)

    def scale(self, z: Float[Array, "b H W z"]) -> Float[Array, "b h w c"]:
        """Returns the scaled latent of a raw one: `scale_factor * (z - shift_factor)`, or that of `LatentNorm`.

        Models with statistics per channel return `scale_factor * (z - latent_mean) / latent_std`.

        Args:
          z: Raw latents.
        """
        if self.params.latent_norm == "batch_norm":
            return self.bn.normalise(z)
        mean, std = channel_statistics(self.params, z)
        return self.params.scale_factor * (z - mean) / std

    def unscale(self, z: Float[Array, "b h w c"]) -> Float[Array, "b H W z"]:
        """Returns the raw latent of a scaled one; the inverse of `scale`.

        Args:
          z: Scaled latents.

        Raises:
          ValueError: If channels are wrong.
        """
        check_latent(self.params.latent_channels, z, "b h w c")
        if self.params.latent_norm == "batch_norm":
            return self.bn.denormalise(z)
        mean, std = channel_statistics(self.params, z)
        return z * std / self.params.scale_factor + mean

    def moments(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b ..."] | None = None
    ) -> Float[Array, "b h/f w/f 2*z"]:
        """Returns the raw moments, from which `DiagonalGaussian` takes mean and logvar along the channels.

        Args:
          x: Images in [-1, 1].
          time: Time condition; see the class.
        """
        time_emb = self.embed_time(time, batch=x.shape[0])
        moments = self.encoder(x, time_emb)
        return self.quant_conv(moments) if self.params.quant_conv else moments

    def embed_time(self, time: Float[Array, "b ..."] | None, batch: int) -> TimeEmb:
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


def example_inputs(model: Model) -> tuple[Float[Array, "1 h w c"], Float[Array, "1 ..."] | None]:
    """Returns the smallest image that the model takes, and a time if it takes one; both are zeros."""
    params, side = model.params, model.params.least_image
    images = jnp.zeros((1, side, side, params.in_channels), model.param_dtype)
    if params.time_emb_dim is None:
        return images, None
    shape = (1, params.time_emb_dim) if params.time_embedding == "linear" else (1,)
    return images, jnp.zeros(shape, model.param_dtype)


def init_params(model: Model, key: PRNGKeyArray) -> dict:
    """Returns newly initialised parameters of the whole model.

    Linen creates a parameter when a call first uses it, so `init(method="encode")` would leave out the decoder.  This
    calls the whole model, compiled, with the smallest image.

    Args:
      model: Autoencoder.
      key: PRNG key.

    Examples:
      >>> model = AutoEncoder(PRESETS["tiny"])
      >>> shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))  # computes nothing
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      3620579
    """
    images, time = example_inputs(model)
    return jax.jit(lambda key: model.init(key, images, time, sample=False))(key)["params"]
