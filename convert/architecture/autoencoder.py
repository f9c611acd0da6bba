"""The autoencoder's architecture: a frozen dataclass that determines every tensor of the model.

`torch_ref` and `flax_vae` build their modules from it, and `convert` expands it into the table of weights.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flax_vae.convert.errors import ArgumentError, ConversionError, shorten, suggest

# Far beyond any published model, yet small enough that the table of its tensors is built in a moment.
MAX_LEVELS = 12
MAX_BLOCKS = 64
MAX_COUNT = 1 << 16

FLOAT32_MIN, FLOAT32_MAX = 2.0**-126, 3.4028234e38  # smaller numbers are flushed to 0 by most devices

NORM_GROUPS = 32  # groups of every GroupNorm; each width must be a multiple of it

LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0  # as in LDM, Stable Diffusion 3, diffusers and its former Flax models

Padding = Literal["symmetric", "asymmetric"]
PaddingMode = Literal["zeros", "reflect"]

# Fields that `to_dict` leaves out while they have their default.  They came after files had been written without them:
# so these files stay as they were, a run or a data set that was begun before them resumes, and earlier releases read
# every model that they can compute.
LATER_FIELDS = (
    *("decoder_widths", "mid_attention", "post_quant_conv", "padding_mode"),
    *("latent_mean", "latent_std", "batch_norm_eps"),
)


_SEQUENCES = {
    "ch_mult": "whole numbers",
    "attn_levels": "whole numbers, or None for all levels",
    "decoder_widths": "whole numbers, or None for those of the encoder",
    "latent_mean": "numbers, or None",
    "latent_std": "numbers, or None",
}


@dataclass(frozen=True)
class AutoEncoderParams:
    """Architecture of an autoencoder.

    The first ten fields are those of the seed, in its order; the defaults of the others give its architecture.
    Sequence fields accept lists, as in JSON, and store tuples.

    Attributes:
      resolution: Side of the training images in pixels.  The model encodes any multiple of `factor`; published
        configurations place attention by this size, and it is the side of a default example.
      in_channels: Channels of the input image.
      ch: Width of the first level.
      out_ch: Channels of the output image.
      ch_mult: Width of each level as a multiple of `ch`; its length is the number of levels.
      num_res_blocks: Residual blocks per level of the encoder (the decoder has one more).
      z_channels: Channels of the raw latent.
      scale_factor: Scale of latents; the scaled latent is `scale_factor * (z - shift_factor)`.
      shift_factor: Shift of latents; see `scale_factor`.
      time_emb_dim: Width of the time embedding, or None for a model without time.
      attn_levels: Levels (0 = full resolution) whose residual blocks are each followed by attention; None means all
        levels (the seed), `()` the middle block only (FLUX, Stable Diffusion).
      downsample_padding: `"symmetric"` pads one pixel on every side (the seed); `"asymmetric"` one row
        below and one column to the right (FLUX, Stable Diffusion).  The two give different latents from the same
        weights, and no shape distinguishes them.
      quant_conv: Whether a 1x1 convolution follows the encoder and, unless `post_quant_conv` decides, one precedes the
        decoder (LDM, Stable Diffusion, FLUX.2).
      learnable_logvar: Whether a learned scalar is added to the posterior's logvar.
      time_embedding: `"linear"` takes `time_emb_dim` values per image (the seed); `"sinusoidal"` takes one
        scalar per image and expands it into sines and cosines first.
      latent_norm: `"scale"` scales latents by `scale_factor` and `shift_factor`; `"batch_norm"` (FLUX.2) gathers 2 x 2
        patches into channels and normalises each of the `4 * z_channels` with running statistics, which are stored
        with the weights and not trained.
      clamp_logvar: Whether the posterior's logvar is limited to [-30, 20], as in LDM, Stable Diffusion 3 and diffusers.
        Changes samples, standard deviations and KL divergences where the encoder's logvar lies outside, never means or
        decoded images.  The weights do not depend on it: an architecture passed to a loader decides, and a stored
        configuration without this field means False.
      decoder_widths: Channels of each level of the decoder (0 = full resolution); None means those of the encoder,
        `ch * ch_mult`.  They are widths and not multiples, because a decoder has no convolution of width `ch`, and
        published ones (FLUX.2's small decoder: 96, 192, 384, 384 beside 128, 256, 512, 512) are no multiples of it.
      mid_attention: Whether the middle blocks have attention; CogView and GLM-Image have none.
      post_quant_conv: Whether a 1x1 convolution precedes the decoder; None means as `quant_conv`.
      padding_mode: `"zeros"` or `"reflect"`: with what convolutions pad that keep height and width, or halve them with
        symmetric padding.  The pixel that `downsample_padding="asymmetric"` adds is zero in both, as in the published
        models.  No shape distinguishes the modes.
      latent_mean: Mean of each channel of the raw latent, or None; with `latent_std`, the scaled latent is
        `scale_factor * (z - latent_mean) / latent_std` (Playground v2.5, GLM-Image, REPA-E).
      latent_std: Standard deviation of each channel; see `latent_mean`.
      batch_norm_eps: Number that `latent_norm="batch_norm"` adds to each variance; 1e-4 in FLUX.2, 1e-5 in ERNIE-Image.

    Examples:
      >>> from dataclasses import replace
      >>> wide = replace(PRESETS["flux1"], z_channels=32)
      >>> wide.factor, wide.latent_channels
      (8, 32)

    Raises:
      ValueError: If a field is invalid; the message names the field, the value and the remedy.

    Source: seed module 8; the switches cover black-forest-labs/flux and CompVis/latent-diffusion.
    """

    resolution: int
    in_channels: int
    ch: int
    out_ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    scale_factor: float
    shift_factor: float
    time_emb_dim: int | None = None
    attn_levels: tuple[int, ...] | None = None
    downsample_padding: Padding = "symmetric"
    quant_conv: bool = False
    learnable_logvar: bool = False
    time_embedding: Literal["linear", "sinusoidal"] = "linear"
    latent_norm: Literal["scale", "batch_norm"] = "scale"
    clamp_logvar: bool = False
    decoder_widths: tuple[int, ...] | None = None
    mid_attention: bool = True
    post_quant_conv: bool | None = None
    padding_mode: PaddingMode = "zeros"
    latent_mean: tuple[float, ...] | None = None
    latent_std: tuple[float, ...] | None = None
    batch_norm_eps: float = 1e-4

    def __post_init__(self):
        # Frozen and hashable for every input sequence: linen compares modules by their fields, jit caches by hash.
        for name, what in _SEQUENCES.items():
            value = getattr(self, name)
            if value is None and name != "ch_mult":
                continue
            unordered = isinstance(value, Mapping) or (isinstance(value, Set) and name != "attn_levels")
            if not isinstance(value, Collection) or isinstance(value, str | bytes) or unordered:
                raise ArgumentError(f"{name}={value!r} must be a list of {what}", field=name, value=value)
            object.__setattr__(self, name, tuple(value))
        if self.attn_levels is not None:
            for level in self.attn_levels:
                if not isinstance(level, int) or isinstance(level, bool):
                    raise ArgumentError(
                        f"attn_levels holds {level!r}; expected whole numbers, the levels with attention"
                    )
            levels = tuple(sorted(set(self.attn_levels)))
            # None and the tuple of all levels describe one model, so they are stored alike.
            object.__setattr__(self, "attn_levels", None if levels == tuple(range(len(self.ch_mult))) else levels)
        self._check()
        if self.decoder_widths == self.widths:
            object.__setattr__(self, "decoder_widths", None)
        if self.post_quant_conv == self.quant_conv:
            object.__setattr__(self, "post_quant_conv", None)

    def _check(self):
        if not self.ch_mult:
            raise ArgumentError("ch_mult=() has no level; expected one multiple of ch per level, e.g. (1, 2, 4)")
        counts = {name: getattr(self, name) for name in ("resolution", "in_channels", "ch", "out_ch", "z_channels")}
        counts |= {f"ch_mult[{level}]": mult for level, mult in enumerate(self.ch_mult)}
        counts |= {"num_res_blocks": self.num_res_blocks}
        if len(self.ch_mult) > MAX_LEVELS:
            raise ArgumentError(f"ch_mult has {len(self.ch_mult)} levels; expected at most {MAX_LEVELS}")
        for name, value in counts.items():
            most = MAX_BLOCKS if name == "num_res_blocks" else MAX_COUNT
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"{name}={value!r} must be a whole number of at least 1", field=name, value=value)
            if value > most:
                raise ArgumentError(f"{name}={_digits(value)} must be at most {most:,}", field=name, value=value)
        for width in (self.ch, *self.widths):
            if width > MAX_COUNT:
                raise ArgumentError(
                    f"ch={self.ch} with ch_mult={shorten(map(str, self.ch_mult), 8)} gives a level of {width:,} "
                    f"channels; expected at most {MAX_COUNT:,}",
                    field="ch",
                    value=self.ch,
                )
            if width % NORM_GROUPS:
                raise ArgumentError(
                    f"ch={self.ch} with ch_mult={self.ch_mult} gives a level of {width} channels, which GroupNorm "
                    f"cannot split into {NORM_GROUPS} groups; make ch a multiple of {NORM_GROUPS}",
                    field="ch",
                    value=self.ch,
                )
        self._check_decoder()
        if self.resolution % self.factor:
            raise ArgumentError(
                f"resolution={self.resolution} must be a multiple of {self.factor}, the factor of {self.num_levels} "
                "levels",
                field="resolution",
                value=self.resolution,
            )
        for name in ("scale_factor", "shift_factor"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not abs(value) <= FLOAT32_MAX:  # which NaN is not, either
                shown = _digits(value) if type(value) is int else f"{value!r:.80}"
                raise ArgumentError(f"{name}={shown} must be a finite number in float32", field=name, value=value)
        if abs(self.scale_factor) < FLOAT32_MIN:
            raise ArgumentError(
                f"scale_factor={self.scale_factor!r} is 0 in float32 and would erase every latent; "
                "use 1.0 for unscaled latents",
                field="scale_factor",
                value=self.scale_factor,
            )
        if self.latent_norm not in ("scale", "batch_norm"):
            raise ArgumentError(
                f"latent_norm={self.latent_norm!r} must be 'scale' or 'batch_norm' (FLUX.2)",
                field="latent_norm",
                value=self.latent_norm,
            )
        if self.latent_norm == "batch_norm" and (self.scale_factor, self.shift_factor) != (1, 0):
            raise ArgumentError(
                f"latent_norm='batch_norm' replaces scale_factor={self.scale_factor} and "
                f"shift_factor={self.shift_factor}; set them to 1 and 0"
            )
        for name in ("quant_conv", "learnable_logvar", "clamp_logvar", "mid_attention", "post_quant_conv"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (value is None and name == "post_quant_conv"):
                also = ", or None for that of quant_conv" if name == "post_quant_conv" else ""
                raise ArgumentError(f"{name}={value!r} must be True or False{also}", field=name, value=value)
        check_padding(self.downsample_padding)
        if self.padding_mode not in get_args(PaddingMode):
            raise ArgumentError(
                f"padding_mode={self.padding_mode!r} must be 'zeros' or 'reflect'",
                field="padding_mode",
                value=self.padding_mode,
            )
        self._check_latent_statistics()
        self._check_attention()
        self._check_time()

    def _check_decoder(self):
        if self.decoder_widths is None:
            return
        if len(self.decoder_widths) != self.num_levels:
            raise ArgumentError(
                f"decoder_widths has {len(self.decoder_widths)} widths; expected one per level, {self.num_levels}",
                field="decoder_widths",
                value=self.decoder_widths,
            )
        for width in self.decoder_widths:
            valid = isinstance(width, int) and not isinstance(width, bool) and 1 <= width <= MAX_COUNT
            if not valid or width % NORM_GROUPS:
                raise ArgumentError(
                    f"decoder_widths holds {width!r}; expected multiples of {NORM_GROUPS}, the groups of a GroupNorm, "
                    f"up to {MAX_COUNT:,}",
                    field="decoder_widths",
                    value=width,
                )

    def _check_latent_statistics(self):
        check_latent_statistics(self.latent_mean, self.latent_std, self.z_channels)
        if self.latent_mean is not None and (self.latent_norm == "batch_norm" or self.shift_factor != 0):
            raise ArgumentError(
                f"latent_mean replaces shift_factor={self.shift_factor} and latent_norm={self.latent_norm!r}; "
                "set them to 0 and 'scale'"
            )
        eps = self.batch_norm_eps
        if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 <= eps <= 1:
            raise ArgumentError(
                f"batch_norm_eps={eps!r:.80} must be a number from 0 to 1", field="batch_norm_eps", value=eps
            )
        if self.latent_norm != "batch_norm" and eps != type(self).batch_norm_eps:
            raise ArgumentError(
                f"batch_norm_eps={eps!r} has no effect with latent_norm={self.latent_norm!r}; leave it out",
                field="batch_norm_eps",
                value=eps,
            )

    def _check_attention(self):
        for level in self.attn_levels or ():
            if not 0 <= level < self.num_levels:
                raise ArgumentError(
                    f"attn_levels={self.attn_levels} names level {level}, but ch_mult has {self.num_levels} levels, "
                    f"numbered from 0 to {self.num_levels - 1}",
                    field="attn_levels",
                    value=self.attn_levels,
                )

    def _check_time(self):
        if self.time_embedding not in ("linear", "sinusoidal"):
            raise ArgumentError(
                f"time_embedding={self.time_embedding!r} must be 'linear' or 'sinusoidal'",
                field="time_embedding",
                value=self.time_embedding,
            )
        if self.time_emb_dim is None:
            if self.time_embedding == "sinusoidal":
                raise ArgumentError("time_embedding='sinusoidal' needs a width; set time_emb_dim")
        elif not isinstance(self.time_emb_dim, int) or isinstance(self.time_emb_dim, bool):
            raise ArgumentError(
                f"time_emb_dim={self.time_emb_dim!r} must be a whole number, or None",
                field="time_emb_dim",
                value=self.time_emb_dim,
            )
        elif self.time_emb_dim > MAX_COUNT:
            raise ArgumentError(
                f"time_emb_dim={_digits(self.time_emb_dim)} must be at most {MAX_COUNT:,}",
                field="time_emb_dim",
                value=self.time_emb_dim,
            )
        elif self.time_emb_dim < 1:
            raise ArgumentError(
                f"time_emb_dim={self.time_emb_dim} must be at least 1, or None for a model without time",
                field="time_emb_dim",
                value=self.time_emb_dim,
            )
        elif self.time_embedding == "sinusoidal" and self.time_emb_dim % 2:
            raise ArgumentError(
                f"time_emb_dim={self.time_emb_dim} is odd; the sinusoidal embedding needs as many sines as cosines",
                field="time_emb_dim",
                value=self.time_emb_dim,
            )

    @property
    def described(self) -> str:
        """Kind of autoencoder, for messages."""
        return "an autoencoder of the FLUX family"

    @property
    def has_posterior(self) -> bool:
        """Whether the encoder gives a distribution over latents; not of `TinyAutoEncoderParams`."""
        return True

    @property
    def decoder_fields(self) -> tuple[str, ...]:
        """Names of the fields that concern the decoder alone."""
        return "decoder_widths", "post_quant_conv"

    @property
    def num_levels(self) -> int:
        """Number of resolutions, the length of `ch_mult`."""
        return len(self.ch_mult)

    @property
    def factor(self) -> int:
        """Ratio of the image's side to the latent's side; h and w must be multiples of it."""
        return 2 ** (self.num_levels - 1) * self.patch

    @property
    def patch(self) -> int:
        """Side of the patches of the raw latent that are gathered into channels; 1 without patches."""
        return 2 if self.latent_norm == "batch_norm" else 1

    @property
    def latent_channels(self) -> int:
        """Channels of the latent that `encode` returns and `decode` takes."""
        return self.z_channels * self.patch**2

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of channels of each level of the encoder."""
        return tuple(self.ch * mult for mult in self.ch_mult)

    @property
    def up_widths(self) -> tuple[int, ...]:
        """Number of channels of each level of the decoder."""
        return self.decoder_widths or self.widths

    @property
    def pre_decoder_conv(self) -> bool:
        """Whether a 1x1 convolution precedes the decoder."""
        return self.quant_conv if self.post_quant_conv is None else self.post_quant_conv

    @property
    def normalises_channels(self) -> bool:
        """Whether each channel of the latent is normalised by statistics of its own."""
        return self.latent_norm == "batch_norm" or self.latent_mean is not None

    @property
    def least_side(self) -> int:
        """Least height and width of a raw latent: reflect padding needs two pixels."""
        return 2 if self.padding_mode == "reflect" else 1

    @property
    def least_image(self) -> int:
        """Least height and width of an image, in pixels."""
        return -(-self.least_side // self.patch) * self.factor

    def attends(self, level: int) -> bool:
        """Returns whether each residual block of this level is followed by attention.

        Args:
          level: Number of the level, from 0 at full size.
        """
        return self.attn_levels is None or level in self.attn_levels

    def differences(self, other: Any) -> list[str]:
        """Returns the names of the fields that differ and change what a model computes.

        Two architectures of the same weights may differ in the rest: `resolution`, and the padding of a model that
        never downsamples.

        Args:
          other: Architecture to compare with.

        Raises:
          ConversionError: If the other architecture is that of a tiny autoencoder.
        """
        require_same_kind(self, other)
        idle = {"resolution"} | ({"downsample_padding"} if self.num_levels == other.num_levels == 1 else set())
        return [name for name, value in vars(self).items() if value != vars(other)[name] and name not in idle]

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, in order, as values for JSON; `LATER_FIELDS` only where they are not the defaults."""
        fields = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, (value, default) in fields.items()
            if name not in LATER_FIELDS or value != default
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "AutoEncoderParams":
        """Returns the architecture of a dictionary; the inverse of `to_dict`.

        Args:
          fields: Fields by name; lists stand for tuples, as in JSON.

        Raises:
          ValueError: If a field is unknown (the message suggests the nearest name) or a required one is missing.
        """
        require_fields(cls, fields)
        return cls(**fields)


def require_fields(cls: type[Any], fields: Mapping[str, Any]) -> None:
    """Checks the names of a dictionary from which the record of an architecture is made.

    Raises:
      ArgumentError: If a field is unknown (the message suggests the nearest name) or a required one is missing.
    """
    known = {field.name: field for field in dataclasses.fields(cls)}
    for name in fields:
        if name not in known:
            raise ArgumentError(f"unknown architecture field {name!r}; {suggest(name, known)}", field=name)
    required = [name for name, field in known.items() if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in fields]
    if missing:
        raise ArgumentError(f"the architecture has no {', '.join(missing)}; expected every required field; add them")


def require_same_kind(one: Any, other: Any) -> None:
    """Checks that two architectures can be compared field by field.

    Raises:
      ConversionError: If they are of different kinds; names both.
    """
    if type(one) is not type(other):
        raise ConversionError(f"one architecture is that of {one.described}, the other that of {other.described}")


def _digits(value: int) -> str:
    """Returns a number as text for a message; Python refuses to print very long ones."""
    return str(value) if value.bit_length() < 100 else f"a number of {value.bit_length()} bits"


def check_latent_statistics(mean: Sequence[Any] | None, std: Sequence[Any] | None, channels: int) -> None:
    """Checks the fields `latent_mean` and `latent_std` of an architecture.

    Args:
      mean: Mean of each channel, or None.
      std: Standard deviation of each channel, or None.
      channels: Channels of the raw latent.

    Raises:
      ValueError: If only one is given, or their numbers are too many, too few, not finite or not positive.
    """
    if (mean is None) != (std is None):
        raise ArgumentError("latent_mean and latent_std are given together; set both, or leave out both")
    for name, numbers in {"latent_mean": mean or (), "latent_std": std or ()}.items():
        if mean is not None and len(numbers) != channels:
            raise ArgumentError(
                f"{name} has {len(numbers)} numbers; expected one per channel of the latent, {channels}",
                field=name,
                value=numbers,
            )
        for value in numbers:
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX
            if not number or (name == "latent_std" and value < FLOAT32_MIN):
                also = ", greater than 0" if name == "latent_std" else ""
                raise ArgumentError(
                    f"{name} holds {value!r:.80}; expected finite numbers in float32{also}", field=name, value=value
                )


def check_padding(padding: str) -> None:
    """Checks that a padding is `"symmetric"` or `"asymmetric"`.

    Args:
      padding: Name of the padding.

    Raises:
      ValueError: If it is neither.
    """
    if padding not in get_args(Padding):
        raise ArgumentError(
            f"downsample padding {padding!r} must be 'symmetric' (the seed) or 'asymmetric' (FLUX, Stable Diffusion)"
        )
