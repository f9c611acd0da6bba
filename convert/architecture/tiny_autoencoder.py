"""The architecture of a tiny autoencoder: TAESD and its relatives, which imitate published models at a small cost.

Its record has the properties of `AutoEncoderParams` by which commands treat both kinds alike: `factor`, `patch`,
`latent_channels`, `time_emb_dim`, `has_posterior`, `decoder_fields`, `differences`, `to_dict`, `from_dict`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flax_vae.convert.architecture.autoencoder import (
    MAX_BLOCKS,
    MAX_COUNT,
    MAX_LEVELS,
    AutoEncoderParams,
    check_latent_statistics,
    require_fields,
    require_same_kind,
)
from flax_vae.convert.errors import ArgumentError, ConversionError

POOL_GROUPS = 4  # groups of the normalisation between the two convolutions of `pool`
POOL_WIDENING = 4  # width between the two convolutions of `pool`, as a multiple of `ch`

_STATISTICS = ("latent_mean", "latent_std")

FAMILY, TINY = "family", "tiny"  # entry of `to_dict` that tells the records apart; `AutoEncoderParams` writes none


@dataclass(frozen=True)
class TinyAutoEncoderParams:
    """Architecture of a tiny autoencoder, TAESD or one of its relatives.

    The published ones give the latents that a diffusion model sees, so there is no scale and no shift.  The encoder
    gives the latent itself, so there is no posterior.  Sequence fields accept lists, as in JSON, and store tuples.

    Attributes:
      z_channels: Channels of the latent before patches are gathered.
      in_channels: Channels of the input image.
      ch: Width of all levels of the encoder, and of the decoder unless `decoder_ch` is given.
      out_ch: Channels of the output image.
      encoder_blocks: Residual blocks of each level of the encoder, level 0 at full resolution.
      decoder_blocks: Residual blocks of each level of the decoder, level 0 at full resolution.
      pool: Whether each block of the lowest resolution begins with `x + pool(x)`, where `pool` is two 1x1 convolutions
        around a normalisation over the whole map (TAEF2).
      patch: Side of the patches of the latent that are gathered into channels, in the order `(c pi pj)`; 2 for TAEF2,
        because FLUX.2's latents have patches of 2 x 2.
      latent_mean: Mean of each channel of the raw latent, or None; with `latent_std`, the latent is
        `(z - latent_mean) / latent_std`, for diffusion models that are trained on latents normalised so.
      latent_std: Standard deviation of each channel; see `latent_mean`.
      decoder_ch: Width of all levels of the decoder; None means that of the encoder.
      decoder_pool: Whether the decoder has pools; None means as `pool`.  diffusers builds decoders without any.

    Raises:
      ValueError: If a field is invalid; the message names the field, the value and the remedy.

    Source: madebyollin/taesd `taesd.py`; diffusers `AutoencoderTiny`.
    """

    z_channels: int
    in_channels: int = 3
    ch: int = 64
    out_ch: int = 3
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    pool: bool = False
    patch: int = 1
    latent_mean: tuple[float, ...] | None = None
    latent_std: tuple[float, ...] | None = None
    decoder_ch: int | None = None
    decoder_pool: bool | None = None

    time_emb_dim: ClassVar[None] = None  # never conditioned on time
    scale_factor: ClassVar[float] = 1.0
    shift_factor: ClassVar[float] = 0.0

    def __post_init__(self):
        for name in ("encoder_blocks", "decoder_blocks"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_LEVELS:
                raise ArgumentError(
                    f"{name}={value!r} must be a list of 1 to {MAX_LEVELS} numbers of blocks", field=name, value=value
                )
            object.__setattr__(self, name, tuple(value))  # hashable: linen compares modules by their fields
            for blocks in getattr(self, name):
                _check_count(name, blocks, least=0, most=MAX_BLOCKS)
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise ArgumentError(
                f"encoder_blocks={self.encoder_blocks} and decoder_blocks={self.decoder_blocks} have different numbers "
                "of levels; expected one number of blocks for each level in both"
            )
        for name in ("z_channels", "in_channels", "ch", "out_ch"):
            _check_count(name, getattr(self, name), least=1, most=MAX_COUNT)
        if type(self.patch) is not int or self.patch not in (1, 2):
            raise ArgumentError(f"patch={self.patch!r} must be 1, or 2 (FLUX.2)", field="patch", value=self.patch)
        if not isinstance(self.pool, bool):
            raise ArgumentError(f"pool={self.pool!r} must be True or False", field="pool", value=self.pool)
        for name in _STATISTICS:
            value = getattr(self, name)
            if value is not None:
                if not isinstance(value, list | tuple):
                    raise ArgumentError(f"{name}={value!r} must be a list of numbers, or None", field=name, value=value)
                object.__setattr__(self, name, tuple(value))
        check_latent_statistics(self.latent_mean, self.latent_std, self.z_channels)
        if self.decoder_ch is not None:
            _check_count("decoder_ch", self.decoder_ch, least=1, most=MAX_COUNT)
        if not isinstance(self.decoder_pool, bool | None):
            raise ArgumentError(
                f"decoder_pool={self.decoder_pool!r} must be True or False, or None for that of the encoder",
                field="decoder_pool",
                value=self.decoder_pool,
            )
        # One record for each model.
        if self.decoder_ch == self.ch:
            object.__setattr__(self, "decoder_ch", None)
        if self.decoder_pool == self.pool or not self.decoder_blocks[-1]:
            object.__setattr__(self, "decoder_pool", None)

    @property
    def described(self) -> str:
        """Kind of autoencoder, for messages."""
        return "a tiny autoencoder"

    @property
    def has_posterior(self) -> bool:
        """Whether the encoder gives a distribution over latents; it gives the latent itself."""
        return False

    @property
    def decoder_fields(self) -> tuple[str, ...]:
        """Names of the fields that concern the decoder alone."""
        return "decoder_blocks", "decoder_ch", "decoder_pool"

    @property
    def num_levels(self) -> int:
        """Number of resolutions."""
        return len(self.encoder_blocks)

    @property
    def factor(self) -> int:
        """Ratio of the image's side to the latent's side; h and w must be multiples of it."""
        return 2 ** (self.num_levels - 1) * self.patch

    @property
    def normalises_channels(self) -> bool:
        """Whether each channel of the latent is normalised by statistics of its own."""
        return self.latent_mean is not None

    @property
    def least_side(self) -> int:
        """Least height and width of a raw latent."""
        return 1

    @property
    def least_image(self) -> int:
        """Least height and width of an image, in pixels."""
        return self.factor

    @property
    def latent_channels(self) -> int:
        """Channels of the latent that `encode` returns and `decode` takes."""
        return self.z_channels * self.patch**2

    @property
    def up_ch(self) -> int:
        """Width of all levels of the decoder."""
        return self.decoder_ch or self.ch

    def down_pools(self, level: int) -> bool:
        """Returns whether the blocks of this level of the encoder have pools.

        Args:
          level: Number of the level, from 0 at full size.
        """
        return self.pool and level == self.num_levels - 1

    def up_pools(self, level: int) -> bool:
        """Returns whether the blocks of this level of the decoder have pools.

        Args:
          level: Number of the level, from 0 at full size.
        """
        pool = self.pool if self.decoder_pool is None else self.decoder_pool
        return pool and level == self.num_levels - 1

    def differences(self, other: "Architecture") -> list[str]:
        """Returns the names of the fields that differ.

        Args:
          other: Architecture to compare with.

        Raises:
          ConversionError: If the other architecture is not that of a tiny autoencoder.
        """
        require_same_kind(self, other)
        return [name for name, value in vars(self).items() if value != vars(other)[name]]

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, in order, as values for JSON, after one that names the kind of autoencoder.

        Leaves out fields that are None, as files do that had been written before they existed.
        """
        fields = {name: value for name, value in vars(self).items() if value is not None}
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        return {FAMILY: TINY} | fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TinyAutoEncoderParams":
        """Returns the architecture of a dictionary; the inverse of `to_dict`.

        Args:
          fields: Fields by name; lists stand for tuples, as in JSON.

        Raises:
          ValueError: If a field is unknown (the message suggests the nearest name), or `z_channels` is missing.
        """
        given = {name: value for name, value in fields.items() if name != FAMILY}
        require_fields(cls, given)
        return cls(**given)


Architecture = AutoEncoderParams | TinyAutoEncoderParams


def architecture_from_dict(fields: Mapping[str, Any]) -> Architecture:
    """Returns the architecture of a dictionary, of either family; the inverse of `to_dict`.

    Args:
      fields: Fields by name; lists stand for tuples, as in JSON.

    Raises:
      ValueError: If the family or a field is unknown, or a required field is missing.
    """
    if FAMILY not in fields:
        return AutoEncoderParams.from_dict(fields)
    if fields[FAMILY] != TINY:
        raise ArgumentError(
            f"{FAMILY}={fields[FAMILY]!r} must be {TINY!r}, or absent for an autoencoder of the FLUX family",
            field=FAMILY,
        )
    return TinyAutoEncoderParams.from_dict(fields)


def require_posterior(params: Architecture) -> AutoEncoderParams:
    """Returns the architecture of an autoencoder with a posterior, for work that needs one.

    Args:
      params: Architecture of either family.

    Raises:
      ConversionError: If it is that of a tiny autoencoder.
    """
    if isinstance(params, AutoEncoderParams):
        return params
    raise ConversionError(
        "these are the weights of a tiny autoencoder, which has no posterior and whose encoder is not trained here; "
        "expected those of an autoencoder of the FLUX or Stable Diffusion family"
    )


def _check_count(name: str, value: Any, *, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        shown = value if not isinstance(value, int) or value.bit_length() < 100 else "a huge number"
        raise ArgumentError(
            f"{name}={shown!r} must be a whole number from {least} to {most:,}", field=name, value=value
        )
