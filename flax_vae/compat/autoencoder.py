"""`FlaxAutoencoderKL` as diffusers had it up to 0.39."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype
from jaxtyping import Array, Float, PRNGKeyArray

from flax_vae.compat import files
from flax_vae.compat.coders import FlaxDecoder, FlaxEncoder
from flax_vae.compat.config import FrozenConfig, config_of, freeze_lists, keys_of, params_of
from flax_vae.compat.outputs import FlaxAutoencoderKLOutput, FlaxDecoderOutput, FlaxDiagonalGaussianDistribution
from flax_vae.convert.architecture import AutoEncoderParams, check_image, check_latent
from flax_vae.convert.errors import ArgumentError, ConversionError
from flax_vae.convert.weights import kept_keys, write_diffusers_config
from flax_vae.numerics import Numerics


class FlaxAutoencoderKL(nn.Module):
    """The autoencoder with the interface of diffusers' former class of this name.

    Shapes: images `b c h w` in [-1, 1]; latents `b h w z`, raw: the caller multiplies by `scaling_factor` and divides.
    The parameters have diffusers' names, `params["encoder"]["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]`.

    Attributes:
      in_channels: Channels of the images that are encoded.
      out_channels: Channels of the images that are decoded.
      down_block_types: Kind of each level of the encoder, `"DownEncoderBlock2D"` or, with attention,
        `"AttnDownEncoderBlock2D"`.
      up_block_types: Kind of each level of the decoder, coarsest first, `"UpDecoderBlock2D"` or
        `"AttnUpDecoderBlock2D"`.
      block_out_channels: Channels of each level, finest first.
      layers_per_block: Residual blocks of each level of the encoder; the decoder has one more.
      act_fn: Activation function; `"silu"`.
      latent_channels: Channels of the latent.
      norm_num_groups: Groups of each norm; 32.
      sample_size: Side of an image in training, in pixels; enters no computation.
      scaling_factor: Factor of latents for diffusion models; enters no computation.
      dtype: Computation dtype.
      shift_factor: Shift of latents for diffusion models, which is subtracted first; enters no computation.
      use_quant_conv: Whether a convolution follows the encoder; diffusers' class always had it.
      use_post_quant_conv: Whether a convolution precedes the decoder; diffusers' class always had it.
      mid_block_add_attention: Whether the coarsest level has attention; in diffusers' class it always had.
      latents_mean: Mean of each channel of the latent, for diffusion models; enters no computation.
      latents_std: Standard deviation of each channel of the latent, for diffusion models; enters no computation.

    Raises:
      ValueError: If a value is not supported.

    Source: diffusers 0.39 `models/vae_flax.py::FlaxAutoencoderKL`.  Differs from it: attention at levels is computed,
    not ignored; images must be multiples of the downsampling factor, where the class dropped odd rows and columns;
    `__call__` works with `return_dict=False`.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215
    dtype: Dtype = jnp.float32
    shift_factor: float = 0.0
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    def __post_init__(self):
        freeze_lists(self)
        _ = self.architecture, Numerics(self.dtype)  # a wrong value is an error here, not in the first call
        super().__post_init__()

    @property
    def config(self) -> FrozenConfig:
        """Configuration in diffusers' keys: a mapping, and an attribute for every key."""
        return config_of(self)

    @property
    def architecture(self) -> AutoEncoderParams:
        """Architecture as the rest of this package takes it."""
        return params_of(self.config)

    def setup(self):
        shared = {"block_out_channels": self.block_out_channels, "layers_per_block": self.layers_per_block}
        shared |= {"norm_num_groups": self.norm_num_groups, "act_fn": self.act_fn, "dtype": self.dtype}
        shared |= {"mid_block_add_attention": self.mid_block_add_attention}
        self.encoder = FlaxEncoder(
            in_channels=self.in_channels,
            out_channels=self.latent_channels,
            down_block_types=self.down_block_types,
            double_z=True,
            **shared,
        )
        self.decoder = FlaxDecoder(
            in_channels=self.latent_channels,
            out_channels=self.out_channels,
            up_block_types=self.up_block_types,
            **shared,
        )
        numerics = Numerics(self.dtype)
        if self.use_quant_conv:
            self.quant_conv = numerics.conv(2 * self.latent_channels, 1)
        if self.use_post_quant_conv:
            self.post_quant_conv = numerics.conv(self.latent_channels, 1)

    def encode(
        self, sample: Float[Array, "b c h w"], deterministic: bool = True, return_dict: bool = True
    ) -> FlaxAutoencoderKLOutput | tuple[FlaxDiagonalGaussianDistribution]:
        """Returns the posterior of images as `.latent_dist`, over raw latents `b h w z`.

        Args:
          sample: Images in [-1, 1]; h and w are multiples of the downsampling factor.
          deterministic: Unused; the published models have no dropout.
          return_dict: Whether to return the record; otherwise a tuple of the posterior.

        Raises:
          ValueError: If sizes, channels or dtype are wrong.
        """
        check_image(self.architecture, sample, "b c h w", moments_only=True)
        moments = self.encoder(jnp.transpose(sample, (0, 2, 3, 1)))
        if self.use_quant_conv:
            moments = self.quant_conv(moments)
        latent_dist = FlaxDiagonalGaussianDistribution(moments)
        return FlaxAutoencoderKLOutput(latent_dist) if return_dict else (latent_dist,)

    def decode(
        self, latents: Float[Array, "b ..."], deterministic: bool = True, return_dict: bool = True
    ) -> FlaxDecoderOutput | tuple[Float[Array, "b c h w"]]:
        """Returns the images of raw latents as `.sample`, `b c h w`, nominally in [-1, 1].

        Args:
          latents: Latents `b h w z`; or `b z h w`, if their last axis has not `latent_channels`.
          deterministic: Unused; the published models have no dropout.
          return_dict: Whether to return the record; otherwise a tuple of the images.

        Raises:
          ValueError: If channels or dtype are wrong.
        """
        channels_first = latents.shape[-1] != self.latent_channels
        check_latent(self.latent_channels, latents, "b c h w" if channels_first else "b h w c")
        if channels_first:
            latents = jnp.transpose(latents, (0, 2, 3, 1))
        if self.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        sample = jnp.transpose(self.decoder(latents), (0, 3, 1, 2))
        return FlaxDecoderOutput(sample) if return_dict else (sample,)

    def __call__(
        self,
        sample: Float[Array, "b c h w"],
        sample_posterior: bool = False,
        deterministic: bool = True,
        return_dict: bool = True,
    ) -> FlaxDecoderOutput | tuple[Float[Array, "b c h w"]]:
        """Returns the reconstructions of images.

        Args:
          sample: Images in [-1, 1].
          sample_posterior: Whether to decode a sample, with the rng stream `"gaussian"`; otherwise the mean.
          deterministic: Unused; the published models have no dropout.
          return_dict: Whether to return the record; otherwise a tuple of the images.

        Raises:
          ValueError: As for `encode`.
        """
        (latent_dist,) = self.encode(sample, return_dict=False)
        latents = latent_dist.sample(self.make_rng("gaussian")) if sample_posterior else latent_dist.mode()
        return self.decode(latents, return_dict=return_dict)

    def init_weights(self, rng: PRNGKeyArray) -> dict[str, Any]:
        """Returns newly initialised parameters, in float32; equal to those of diffusers' class for the same key.

        Args:
          rng: PRNG key.
        """
        factor = self.architecture.factor
        images = jnp.zeros((1, self.in_channels, factor, factor))
        rngs = dict(zip(("params", "dropout", "gaussian"), jax.random.split(rng, 3), strict=True))
        return jax.jit(self.init)(rngs, images)["params"]

    def to_bf16(self, params: Mapping[str, Any], mask: Any = None) -> dict[str, Any]:
        """Returns the parameters in bfloat16; where a leaf of `mask` is False, as they are.

        Args:
          params: Parameters.
          mask: Tree of booleans with the structure of the parameters; None converts all.
        """
        return _cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Mapping[str, Any], mask: Any = None) -> dict[str, Any]:
        """Returns the parameters in float16; where a leaf of `mask` is False, as they are.

        Args:
          params: Parameters.
          mask: Tree of booleans with the structure of the parameters; None converts all.
        """
        return _cast(params, jnp.float16, mask)

    def to_fp32(self, params: Mapping[str, Any], mask: Any = None) -> dict[str, Any]:
        """Returns the parameters in float32; where a leaf of `mask` is False, as they are.

        Args:
          params: Parameters.
          mask: Tree of booleans with the structure of the parameters; None converts all.
        """
        return _cast(params, jnp.float32, mask)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dtype: Dtype = jnp.float32) -> "FlaxAutoencoderKL":
        """Returns the module of a configuration in diffusers' keys, such as `vae.config` or a parsed `config.json`.

        Args:
          config: Configuration in diffusers' keys.
          dtype: Computation dtype.

        Raises:
          ConversionError: If this package cannot express the configuration.
          ValueError: If it is not a mapping.
        """
        if not isinstance(config, Mapping):
            raise ArgumentError(
                f"config={config!r} is not a mapping of keys; for a folder or a name, pass "
                "FlaxAutoencoderKL.load_config(...)",
                field="config",
                value=config,
            )
        expected, defaulted = params_of(config), config.get("_use_default_values") or ()
        given = {key: value for key, value in config.items() if value is not None and key not in defaulted}
        fields = write_diffusers_config(expected) | given
        vae = cls(**{key: fields[key] for key in keys_of(cls) if key in fields}, dtype=dtype)
        if differences := vae.architecture.differences(expected):
            raise ConversionError(
                f"FlaxAutoencoderKL cannot express {', '.join(differences)} of this configuration; use "
                "flax_vae.from_pretrained for this model"
            )
        return vae

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Returns the configuration of a folder or of a model on the Hugging Face hub, for `from_config`.

        Args:
          pretrained_model_name_or_path: Folder, or name on the hub.
          subfolder: Folder inside of it, such as `"vae"`.
          revision: Branch, tag or commit on the hub; unused for a local path.
          **options: As for `from_pretrained`.

        Raises:
          FileNotFoundError: If there is no `config.json`.
          FileError: If it is damaged.
          ConversionError: If this package cannot express it.
          ValueError: If an option is unknown.
        """
        files.check_options(options)
        return files.load_config(pretrained_model_name_or_path, subfolder, revision)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        dtype: Dtype = jnp.float32,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        from_pt: bool = False,
        **options: Any,
    ) -> tuple["FlaxAutoencoderKL", dict[str, Any]]:
        """Returns the module and the parameters of a folder or of a model on the Hugging Face hub.

        Needs no PyTorch.  The parameters keep the dtype of the file and lie on the default device.

        Args:
          pretrained_model_name_or_path: Folder or file, anything that `flax_vae.from_pretrained` takes with a
            configuration; or name on the hub, `"org/name"`.
          dtype: Computation dtype.
          subfolder: Folder inside of it, such as `"vae"`.
          revision: Branch, tag or commit on the hub; unused for a local path.
          variant: Variant of a folder that holds several, such as `"fp16"`.
          from_pt: Whether to prefer PyTorch's files in a local folder that has a msgpack file too.
          **options: Further options of diffusers that change no number, most about downloads; unused.

        Raises:
          FileNotFoundError: If there is no such model.
          FileError: If a file is damaged.
          ConversionError: If the weights do not match the configuration, or this package cannot express it.
          ValueError: If an option is unknown, or models cannot compute in the dtype of the weights.
        """
        files.check_options(options)
        weights = files.load(pretrained_model_name_or_path, subfolder, revision, variant, from_pt)
        vae = cls.from_config(write_diffusers_config(weights.params, weights.kept), dtype)
        return vae, files.to_params(weights)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        params: Mapping[str, Any],
        is_main_process: bool = True,
        *,
        layout: str = "diffusers-flax",
    ) -> None:
        """Writes `config.json` and `diffusion_flax_model.msgpack`, as diffusers' class did.

        Args:
          save_directory: Folder to write; one that holds such a model is replaced.
          params: Parameters, written in their own dtypes.
          is_main_process: Whether this process writes; otherwise the call does nothing.
          layout: Layout to write: `"diffusers-flax"`; `"diffusers"`, which `diffusers.AutoencoderKL` loads in PyTorch;
            or `"flux"`, a model folder of this package.

        Raises:
          FileExistsError: If the folder holds other files.
          ConversionError: If the parameters do not match the architecture, or the layout cannot express it.
        """
        if is_main_process:
            files.save(save_directory, params, self.architecture, kept_keys(self.config), layout)


def _cast(params: Mapping[str, Any], dtype: Dtype, mask: Any) -> dict[str, Any]:
    mask = jax.tree.map(lambda _: True, params) if mask is None else mask
    return jax.tree.map(
        lambda leaf, wanted: leaf.astype(dtype) if wanted and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        params,
        mask,
    )
