"""Encoder and decoder under diffusers' Flax names and arguments."""

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float

from flax_vae.coders import Decoder, Encoder
from flax_vae.compat.config import config_of, freeze_lists, params_of
from flax_vae.compat.names import declare
from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.convert.errors import ArgumentError
from flax_vae.numerics import Numerics


class FlaxEncoder(nn.Module):
    """Computes the moments of images, with diffusers' arguments and parameter names, on `flax_vae.Encoder`.

    Attributes:
      in_channels: Channels of the images.
      out_channels: Channels of the latent with `double_z`; otherwise channels of the moments.
      down_block_types: Kind of each level, `"DownEncoderBlock2D"` or, with attention, `"AttnDownEncoderBlock2D"`.
      block_out_channels: Channels of each level.
      layers_per_block: Residual blocks of each level.
      norm_num_groups: Groups of each norm; 32.
      act_fn: Activation function; `"silu"`.
      double_z: Whether the result has `2 * out_channels` channels.
      dtype: Computation dtype.
      mid_block_add_attention: Whether the coarsest level has attention.

    Raises:
      ValueError: If a value is not supported.

    Source: diffusers 0.39 `models/vae_flax.py::FlaxEncoder`.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    act_fn: str = "silu"
    double_z: bool = False
    dtype: Dtype = jnp.float32
    mid_block_add_attention: bool = True

    def __post_init__(self):
        freeze_lists(self)
        _ = self.architecture, Numerics(self.dtype)  # a wrong value is an error here, not in the first call
        super().__post_init__()

    @property
    def architecture(self) -> AutoEncoderParams:
        """Architecture; fields that only the decoder has are arbitrary."""
        channels = 2 * self.out_channels if self.double_z else self.out_channels
        if channels % 2:
            raise ArgumentError(
                f"out_channels={channels} is odd; expected as many means as logvars; set double_z=True",
                field="out_channels",
                value=channels,
            )
        up_block_types = [kind.replace("DownEncoder", "UpDecoder") for kind in reversed(self.down_block_types)]
        return params_of(dict(config_of(self)) | {"latent_channels": channels // 2, "up_block_types": up_block_types})

    def __call__(self, sample: Float[Array, "b h w c"], deterministic: bool = True) -> Float[Array, "b h/f w/f 2*z"]:
        """Returns the moments of images in [-1, 1].

        Args:
          sample: Images; h and w are multiples of the downsampling factor.
          deterministic: Unused; the published models have no dropout.

        Raises:
          ValueError: If sizes, channels or dtype are wrong.
        """
        params = self.architecture
        inner = Encoder(params, Numerics(self.dtype), parent=None)
        return inner.apply({"params": declare(self, "encoder", params)}, sample)  # pyright: ignore[reportReturnType]


class FlaxDecoder(nn.Module):
    """Computes images from raw latents, with diffusers' arguments and parameter names, on `flax_vae.Decoder`.

    Attributes:
      in_channels: Channels of the latent.
      out_channels: Channels of the images.
      up_block_types: Kind of each level, coarsest first, `"UpDecoderBlock2D"` or, with attention,
        `"AttnUpDecoderBlock2D"`.
      block_out_channels: Channels of each level, finest first.
      layers_per_block: One less than the residual blocks of each level.
      norm_num_groups: Groups of each norm; 32.
      act_fn: Activation function; `"silu"`.
      dtype: Computation dtype.
      mid_block_add_attention: Whether the coarsest level has attention.

    Raises:
      ValueError: If a value is not supported.

    Source: diffusers 0.39 `models/vae_flax.py::FlaxDecoder`.
    """

    in_channels: int = 3
    out_channels: int = 3
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    act_fn: str = "silu"
    dtype: Dtype = jnp.float32
    mid_block_add_attention: bool = True

    def __post_init__(self):
        freeze_lists(self)
        _ = self.architecture, Numerics(self.dtype)  # a wrong value is an error here, not in the first call
        super().__post_init__()

    @property
    def architecture(self) -> AutoEncoderParams:
        """Architecture; fields that only the encoder has are arbitrary."""
        down_block_types = [kind.replace("UpDecoder", "DownEncoder") for kind in reversed(self.up_block_types)]
        fields = {"in_channels": 3, "latent_channels": self.in_channels, "down_block_types": down_block_types}
        return params_of(dict(config_of(self)) | fields)

    def __call__(self, sample: Float[Array, "b h w z"], deterministic: bool = True) -> Float[Array, "b h*f w*f c"]:
        """Returns the images of raw latents, nominally in [-1, 1].

        Args:
          sample: Latents.
          deterministic: Unused; the published models have no dropout.

        Raises:
          ValueError: If channels or dtype are wrong.
        """
        params = self.architecture
        inner = Decoder(params, Numerics(self.dtype), parent=None)
        return inner.apply({"params": declare(self, "decoder", params)}, sample)  # pyright: ignore[reportReturnType]
