"""The autoencoder: encoder, posterior, scaled latents, decoder."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, PRNGKeyArray

from flax_vae.attention import AttentionPath
from flax_vae.coders import Decoder, Encoder
from flax_vae.convert.architecture import AutoEncoderParams, check_image, check_latent, check_time
from flax_vae.embedding import sinusoidal_embedding
from flax_vae.gaussian import DiagonalGaussian, Posterior
from flax_vae.latents import LatentNorm
from flax_vae.layers import conv
from flax_vae.ops import Dense, Remat


class AutoEncoder(nn.Module):
    """Images to scaled latents and back.

    Shapes: images `b h w c` in [-1, 1]; raw latents `b H W z`; scaled latents `b h/f w/f c` with `f = params.factor`
    and `c = params.latent_channels`, the same as raw ones except under `LatentNorm`.  `time` is `b t` numbers
    (`time_embedding="linear"`) or `b` scalars (`"sinusoidal"`), and absent where `params.time_emb_dim` is None.

    Attributes:
      params: the architecture.
      dtype: of the computation; None follows inputs and parameters, `jnp.bfloat16` computes in bfloat16 with
        parameters and statistics in float32.
      param_dtype: of the parameters that `init` makes.
      remat: what the backward pass computes again instead of keeping: `"none"`, `"attention"` or `"blocks"`.
      attention: how it is computed, `"auto"`, `"full"`, `"tiles"` or `"cudnn"`; see `flax_vae.attention`.

    Source: seed module 8; black-forest-labs/flux `modules/autoencoder.py::AutoEncoder`; the quant convolutions are
    CompVis/latent-diffusion's `AutoencoderKL`.  Twin: `torch_ref.autoencoder`.
    """

    params: AutoEncoderParams
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    remat: Remat = "none"
    attention: AttentionPath = "auto"

    def setup(self):
        params = self.params
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.encoder = Encoder(params, remat=self.remat, attention=self.attention, **kinds)
        self.decoder = Decoder(params, remat=self.remat, attention=self.attention, **kinds)
        self.reg = DiagonalGaussian(
            learnable_logvar=params.learnable_logvar, clamp_logvar=params.clamp_logvar, param_dtype=self.param_dtype
        )
        if params.quant_conv:
            self.quant_conv = conv(2 * params.z_channels, 1, **kinds)
            self.post_quant_conv = conv(params.z_channels, 1, **kinds)
        if params.latent_norm == "batch_norm":
            self.bn = LatentNorm(params.latent_channels, self.param_dtype)
        if params.time_emb_dim is not None:
            self.time_embed = Dense(params.time_emb_dim, **kinds)

    def encode(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b ..."] | None = None,
        *,
        sample: bool = True,
        noise: Float[Array, "b H W z"] | None = None,
    ) -> Float[Array, "b h/f w/f c"]:
        """Returns the scaled latent; see `scale`.

        Args:
          x: images in [-1, 1].
          time: see the class.
          sample: draw z from the posterior with `rngs={"sample": key}`, as the seed does; otherwise z is its mean.
          noise: standard normal numbers to draw with, for results that can be compared across frameworks.

        Raises:
          ValueError: on wrong sizes or channels, on missing, superfluous or misshapen `time` or `noise`, and when
            there is nothing to draw with.
        """
        check_image(self.params, x, "b h w c")
        z = self.reg(self.moments(x, time), sample=sample, noise=noise)
        return self.scale(z)

    def decode(
        self, z: Float[Array, "b h w c"], time: Float[Array, "b ..."] | None = None
    ) -> Float[Array, "b h*f w*f c"]:
        """Returns the images, nominally in [-1, 1], of scaled latents.

        Raises:
          ValueError: on wrong channels, on missing, superfluous or misshapen `time`.
        """
        time_emb = self.embed_time(time, batch=z.shape[0])
        z = self.unscale(z)
        if self.params.quant_conv:
            z = self.post_quant_conv(z)
        return self.decoder(z, time_emb)

    def posterior(self, x: Float[Array, "b h w c"], time: Float[Array, "b ..."] | None = None) -> Posterior:
        """Returns the distribution of the raw latent.

        Raises:
          ValueError: as `encode`.
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
        """Returns the images decoded from their own latents; arguments as for `encode`."""
        return self.decode(self.encode(x, time, sample=sample, noise=noise), time)

    def scale(self, z: Float[Array, "b H W z"]) -> Float[Array, "b h w c"]:
        """Returns the scaled latent of a raw one: `scale_factor * (z - shift_factor)`, or as `LatentNorm` does."""
        if self.params.latent_norm == "batch_norm":
            return self.bn.normalise(z)
        return self.params.scale_factor * (z - self.params.shift_factor)

    def unscale(self, z: Float[Array, "b h w c"]) -> Float[Array, "b H W z"]:
        """Returns the raw latent of a scaled one; the inverse of `scale`.

        Raises:
          ValueError: on wrong channels.
        """
        check_latent(self.params.latent_channels, z, "b h w c")
        if self.params.latent_norm == "batch_norm":
            return self.bn.denormalise(z)
        return z / self.params.scale_factor + self.params.shift_factor

    def moments(
        self, x: Float[Array, "b h w c"], time: Float[Array, "b ..."] | None = None
    ) -> Float[Array, "b h/f w/f 2*z"]:
        """Returns what `DiagonalGaussian` makes a mean and a logvar of, one after the other along the channels; raw."""
        time_emb = self.embed_time(time, batch=x.shape[0])
        moments = self.encoder(x, time_emb)
        return self.quant_conv(moments) if self.params.quant_conv else moments

    def embed_time(self, time: Float[Array, "b ..."] | None, batch: int) -> Float[Array, "b t"] | None:
        """Returns the vector that every residual block receives, or None for a model without time.

        Raises:
          ValueError: on missing, superfluous or misshapen `time`.
        """
        check_time(self.params, time, batch)
        if time is None or self.params.time_emb_dim is None:
            return None
        if self.params.time_embedding == "sinusoidal":
            time = sinusoidal_embedding(time, self.params.time_emb_dim)
        return self.time_embed(time)


def example_inputs(model: AutoEncoder) -> tuple[Float[Array, "1 f f c"], Float[Array, "1 ..."] | None]:
    """Returns the smallest image that the model takes, and a time where it takes one; both zero."""
    record = model.params
    images = jnp.zeros((1, record.factor, record.factor, record.in_channels), model.param_dtype)
    if record.time_emb_dim is None:
        return images, None
    shape = (1, record.time_emb_dim) if record.time_embedding == "linear" else (1,)
    return images, jnp.zeros(shape, model.param_dtype)


def init_params(model: AutoEncoder, key: PRNGKeyArray) -> dict:
    """Returns freshly initialised parameters, all of them.

    Linen makes a parameter when a call first reaches it, so `init(method="encode")` would leave the decoder out.  This
    goes through the whole model, compiled, on the smallest image there is.
    """
    images, time = example_inputs(model)
    return jax.jit(lambda key: model.init(key, images, time, sample=False))(key)["params"]
