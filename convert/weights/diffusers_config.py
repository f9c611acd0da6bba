"""Converts between diffusers' `config.json` and the architecture.

Every key that diffusers knows is listed below, once: as one that is mapped, one that must have the only value that our
architecture supports, or one that does not change the model.  Unlisted keys are refused, because a model with a
partially read configuration gives wrong images without an error.
"""

import os
from collections.abc import Mapping
from typing import Any

from flax_vae.convert.architecture import NORM_GROUPS, Architecture, AutoEncoderParams
from flax_vae.convert.errors import ConversionError, FileError, suggest
from flax_vae.convert.files import read_object
from flax_vae.convert.formats import foreign
from flax_vae.convert.weights.tiny_config import (
    TINY,
    TINY_DEFAULTS,
    TINY_KEPT,
    TINY_STATISTICS,
    read_tiny_config,
    write_tiny_config,
)

KL, FLUX2 = "AutoencoderKL", "AutoencoderKLFlux2"
FLAX = "FlaxAutoencoderKL"  # in releases before 0.40; fewer keys, with equal meanings

# Defaults of diffusers 0.42, used for keys that a file, perhaps of an earlier release, does not have.
_SHARED: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": NORM_GROUPS,
    "sample_size": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    KL: _SHARED
    | {
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [64],
        "scaling_factor": 0.18215,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "force_upcast": True,
    },
    FLUX2: _SHARED
    | {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "decoder_block_out_channels": None,
        "layers_per_block": 2,
        "latent_channels": 32,
        "sample_size": 1024,
        "batch_norm_eps": 1e-4,
        "batch_norm_momentum": 0.1,
        "patch_size": [2, 2],
    },
}
DEFAULTS[FLAX] = DEFAULTS[KL]


# The only value that our architecture supports.
_FIXED: dict[str, Any] = {"norm_num_groups": NORM_GROUPS, "patch_size": [2, 2]}

# The pipelines that multiply by `scaling_factor` beside statistics per channel, those of Stable Diffusion XL, take
# latents of this many channels only; with more channels, statistics replace scaling and shift (GLM-Image, REPA-E).
_SCALED_CHANNELS = 4

_SILU = ("silu", "swish")  # two names of one function; diffusers also accepts them in upper case

# Keys that diffusers' EMAModel adds to the configuration of a moving average.
_EMA = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup")

# Keys of the other classes, and values with which they change nothing: published FLUX.2 files have `force_upcast`.
_STRAY: dict[str, tuple[Any, ...]] = {
    "decoder_block_out_channels": (None,),
    "force_upcast": (True, False),
    "latents_mean": (None,),
    "latents_std": (None,),
    "scaling_factor": (None, 1.0),
    "shift_factor": (None, 0.0),
}
# Keys of the programs that wrote the file, about the file itself.
_NOTES = ("dtype", "torch_dtype", "transformers_version")

# Does not change what the model computes, and is written back unchanged; see `kept_keys`.
_KEPT = ("act_fn", "batch_norm_momentum", "force_upcast", "sample_size")

# Keys of the former Flax class.
_FLAX_KEYS = (
    "act_fn", "block_out_channels", "down_block_types", "in_channels", "latent_channels", "layers_per_block",
    "norm_num_groups", "out_channels", "sample_size", "scaling_factor", "up_block_types",
)  # fmt: skip
_FLAX_EXTRA = ("latents_mean", "latents_std", "shift_factor")  # which it keeps, and leaves to its users as the scale

# plain, with attention after each residual block
_DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
_UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


def is_diffusers_config(fields: Mapping[str, Any]) -> bool:
    """Returns whether a `config.json` has the form of diffusers' configurations, for any class."""
    return "_class_name" in fields


def read_diffusers_config(fields: Mapping[str, Any]) -> Architecture:
    """Returns the architecture of a diffusers `config.json`.

    Absent keys have diffusers' defaults.  Ignores keys that do not change what the model computes: private ones, which
    begin with an underscore, those of a moving average, the dtype of the file, and keys of the other classes with a
    value that has no effect, such as `force_upcast` of FLUX.2.

    Statistics per channel (`latents_mean`, `latents_std`) mean what the pipelines that read them compute, which is
    `(z - mean) * scaling_factor / std` for latents of four channels (Playground v2.5), and otherwise `(z - mean) / std`
    (GLM-Image, REPA-E).  Beside statistics no pipeline reads `shift_factor`.

    Args:
      fields: Content of the file.

    Raises:
      ConversionError: If our architecture cannot express the class, a key or a value.
    """
    fields = _as_written(fields)
    name = fields.get("_class_name")
    if not isinstance(name, str) or name not in (*DEFAULTS, TINY):
        raise ConversionError(f"_class_name is {name!r}; expected one of {', '.join((*DEFAULTS, TINY))}")
    defaults = TINY_DEFAULTS if name == TINY else DEFAULTS[name]
    known = {*defaults, *TINY_KEPT, *TINY_STATISTICS} if name == TINY else defaults
    unknown = [key for key, value in fields.items() if key not in known and not _is_idle(key, value)]
    if unknown:
        near = {key: suggest(key, defaults, listed=False) for key in unknown}
        hints = [f"{key}={fields[key]!r}" + (f" ({hint})" if hint else "") for key, hint in near.items()]
        raise ConversionError(
            f"{name} has unknown keys, which may change what the model computes: {', '.join(hints)}", field=unknown[0]
        )
    if name == TINY:
        return read_tiny_config({key: _listed(value) for key, value in fields.items() if not _is_idle(key, value)})
    values = {key: _listed(value) for key, value in (defaults | dict(fields)).items()}
    if str(values["act_fn"]).lower() not in _SILU:
        raise ConversionError(f"act_fn={values['act_fn']!r} is not supported; expected 'silu'")
    for key, meant in _FIXED.items():
        if key in values and values[key] != meant:
            raise ConversionError(f"{key}={values[key]!r} is not supported; expected {meant!r}")
    widths = _widths(values, "block_out_channels")
    if any(width % widths[0] for width in widths):
        raise ConversionError(
            f"block_out_channels={widths} must be whole multiples of the first, {widths[0]}: "
            "each width is ch * ch_mult here"
        )
    key = "decoder_block_out_channels"
    up_widths = tuple(_widths(values, key)) if values.get(key) else None
    try:
        return AutoEncoderParams(
            resolution=_side(values["sample_size"], 2 ** (len(widths) - 1) * (2 if name == FLUX2 else 1)),
            in_channels=values["in_channels"],
            ch=widths[0],
            out_ch=values["out_channels"],
            ch_mult=tuple(width // widths[0] for width in widths),
            num_res_blocks=values["layers_per_block"],
            z_channels=values["latent_channels"],
            attn_levels=_attn_levels(values, len(widths)),
            downsample_padding="asymmetric",  # diffusers' encoder blocks support no other
            quant_conv=values["use_quant_conv"],
            post_quant_conv=values["use_post_quant_conv"],
            mid_attention=values["mid_block_add_attention"],
            decoder_widths=up_widths,
            clamp_logvar=True,  # as `DiagonalGaussianDistribution` does
            **_latent_fields(name, values),
        )
    except (TypeError, ValueError) as error:
        raise ConversionError(str(error)) from error


def _is_idle(key: str, value: Any) -> bool:
    """Returns whether a key that the class does not have changes nothing."""
    return key.startswith("_") or key in (*_EMA, *_NOTES) or value in _STRAY.get(key, ())


def kept_keys(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of a diffusers `config.json` that the architecture does not hold and that are written back.

    Merged over the output of `write_diffusers_config` for the same weights, they restore the original file.

    Args:
      fields: Content of the file.
    """
    fields = _as_written(fields)
    if fields.get("_class_name") == TINY:
        return {key: value for key, value in fields.items() if key in TINY_KEPT}
    kept = {*_KEPT, *(("scaling_factor", "shift_factor") if _replaces_scaling(fields) else ())}
    return {key: value for key, value in fields.items() if key in kept}


def write_diffusers_config(params: Architecture, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the `config.json` from which `diffusers.AutoencoderKL.from_pretrained` builds this architecture.

    diffusers always limits the posterior's logvar, so a model without `clamp_logvar` gains the limits; means and
    decoded images do not change.

    Args:
      params: Architecture.
      kept: Entries of the configuration that the weights came with; see `kept_keys`.

    Raises:
      ConversionError: If diffusers cannot express it; the message names the reason.
    """
    if not isinstance(params, AutoEncoderParams):
        return write_tiny_config(params) | dict(kept or {})
    for condition, sentence in (
        (params.time_emb_dim is not None, f"are not conditioned on time (time_emb_dim={params.time_emb_dim})"),
        (params.learnable_logvar, "have no learnable_logvar"),
        (params.downsample_padding != "asymmetric", "pad asymmetrically only (downsample_padding='symmetric')"),
        (params.ch_mult[0] != 1, f"start at the width of their first level (ch_mult={params.ch_mult})"),
        (params.padding_mode != "zeros", "pad with zeros (padding_mode='reflect')"),
        (
            params.decoder_widths is not None and params.latent_norm != "batch_norm",
            f"have a decoder as wide as the encoder, but for FLUX.2's (decoder_widths={params.decoder_widths})",
        ),
        (
            params.latent_std is not None and params.scale_factor != 1 and params.z_channels != _SCALED_CHANNELS,
            f"take statistics per channel in place of a scale (scale_factor={params.scale_factor}; divide each of "
            "latent_std by it, and set it to 1)",
        ),
    ):
        if condition:
            raise ConversionError(f"diffusers cannot express this architecture: its autoencoders {sentence}")
    levels = range(params.num_levels)
    name = _class_name(params)
    return {
        "_class_name": name,
        "_diffusers_version": "0.42.1",  # the release that defines the meaning of these keys
        "act_fn": "silu",
        "block_out_channels": list(params.widths),
        "down_block_types": [_DOWN[params.attends(level)] for level in levels],
        "in_channels": params.in_channels,
        "latent_channels": params.z_channels,
        "layers_per_block": params.num_res_blocks,
        "mid_block_add_attention": params.mid_attention,
        "norm_num_groups": NORM_GROUPS,
        "out_channels": params.out_ch,
        "sample_size": params.resolution,
        "up_block_types": [_UP[params.attends(level)] for level in reversed(levels)],
        "use_post_quant_conv": params.pre_decoder_conv,
        "use_quant_conv": params.quant_conv,
        **_latent_keys(name, params),
        **(kept or {}),
    }


def change_latent_keys(fields: Mapping[str, Any], params: Architecture) -> dict[str, Any]:
    """Returns a diffusers `config.json` with the normalisation of the latents that an architecture has.

    All other keys stay as they are, and so do `scaling_factor` and `shift_factor` where statistics per channel stand in
    their place; see `read_diffusers_config`.

    Args:
      fields: Keys of the file.
      params: Architecture, equal to that of the file but for scale, shift and statistics.

    Raises:
      ConversionError: If it differs in more, or diffusers cannot express it.
    """
    written = write_diffusers_config(params)
    keys = ["latents_mean", "latents_std"]
    if not _replaces_scaling(written):
        keys += ["scaling_factor", "shift_factor"]
    changed = dict(fields) | {key: written[key] for key in keys if key in written}
    if "_use_default_values" in fields:
        changed["_use_default_values"] = [key for key in fields["_use_default_values"] or () if key not in keys]
    now = read_diffusers_config(changed)
    different = params.differences(now)
    if different:
        raise ConversionError(
            f"{', '.join(different)}: a configuration of diffusers is changed in scale, shift and statistics only; "
            "write the model again"
        )
    return changed


def write_flax_config(params: Architecture, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the `config.json` of the former `diffusers.FlaxAutoencoderKL`, as its last release, 0.39, wrote it.

    That class has fewer keys than `AutoencoderKL` and ignores the others, so what they express is refused.  It never
    normalised latents itself; a shift and statistics per channel are extra keys.

    Args:
      params: Architecture.
      kept: Entries of the configuration that the weights came with; see `kept_keys`.

    Raises:
      ConversionError: If the class cannot express the architecture; the message names the reason.
    """
    config = write_diffusers_config(params, kept)
    sentences = [f"{key}={value!r}" for key, value in config.items() if not _fits_flax(key, value)]
    if config["_class_name"] != KL:
        sentences = [f"the latents of {config['_class_name']}"]
    if sentences:
        raise ConversionError(
            f"diffusers' former Flax class cannot express {', '.join(sentences)}; use the 'diffusers' or 'flux' layout"
        )
    known = {key: config[key] for key in sorted(config) if key in _FLAX_KEYS or (key in _FLAX_EXTRA and config[key])}
    return {"_class_name": FLAX, "_diffusers_version": "0.39.0"} | known


def _fits_flax(key: str, value: Any) -> bool:
    """Returns whether the former Flax class computes with this value of a key."""
    if key.endswith("_block_types"):
        return not any(kind.startswith("Attn") for kind in value)
    return key in (*_FLAX_KEYS, *_FLAX_EXTRA, *_KEPT) or key.startswith("_") or value == DEFAULTS[KL].get(key)


def read_diffusers_file(path: str | os.PathLike[str]) -> Architecture:
    """Reads the architecture from a diffusers `config.json`.

    Raises:
      FileError: If the file is not JSON.
      ConversionError: If our architecture cannot express it.
    """
    try:
        fields = read_object(path)
    except ValueError as error:
        raise FileError(
            foreign(path, "a configuration") or f"{path} is not a configuration of diffusers: {error}",
            path=path,
        ) from error
    try:
        return read_diffusers_config(fields)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}", path=path) from error


# The classes differ in how latents are normalised, so that part is separate.


def _class_name(params: AutoEncoderParams) -> str:
    return FLUX2 if params.latent_norm == "batch_norm" else KL


def _latent_fields(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    if name == FLUX2:
        eps = values["batch_norm_eps"]
        return {"scale_factor": 1.0, "shift_factor": 0.0, "latent_norm": "batch_norm", "batch_norm_eps": eps}
    mean, std, shift = values["latents_mean"], values["latents_std"], values["shift_factor"]
    if (mean is None) != (std is None):
        raise ConversionError(f"latents_mean={mean!r} and latents_std={std!r}: expected both or neither")
    if mean is None:
        return {"scale_factor": values["scaling_factor"], "shift_factor": 0.0 if shift is None else shift}
    scale = 1.0 if _replaces_scaling(values) else values["scaling_factor"]
    return {"scale_factor": scale, "shift_factor": 0.0, "latent_mean": mean, "latent_std": std}


def _replaces_scaling(values: Mapping[str, Any]) -> bool:
    """Returns whether statistics per channel stand in place of `scaling_factor`; see `read_diffusers_config`."""
    channels = values.get("latent_channels", _SHARED["latent_channels"])
    return values.get("latents_std") is not None and channels != _SCALED_CHANNELS


def _latent_keys(name: str, params: AutoEncoderParams) -> dict[str, Any]:
    if name == FLUX2:
        return {
            "batch_norm_eps": params.batch_norm_eps,
            "batch_norm_momentum": 0.1,
            "decoder_block_out_channels": _listed(params.decoder_widths),
            "patch_size": [2, 2],
        }
    return {
        "force_upcast": True,
        "latents_mean": _listed(params.latent_mean),
        "latents_std": _listed(params.latent_std),
        "scaling_factor": params.scale_factor,
        "shift_factor": params.shift_factor,  # 0.0, not None: pipelines of FLUX and SD3 add it unconditionally
    }


def _widths(values: Mapping[str, Any], key: str) -> list[int]:
    widths = values[key]
    if not isinstance(widths, list) or not widths or not all(type(width) is int and width > 0 for width in widths):
        raise ConversionError(f"{key}={widths!r} must be a list of whole numbers")
    return widths


def _attn_levels(values: Mapping[str, Any], num_levels: int) -> tuple[int, ...]:
    """Returns the levels with attention; diffusers numbers the decoder's from the lowest resolution."""
    found = {}
    for key, (plain, attending) in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        types = values[key]
        if not isinstance(types, list) or len(types) != num_levels:
            raise ConversionError(f"{key}={types!r} must name one block for each of {num_levels} levels")
        for kind in types:
            if kind not in (plain, attending):
                raise ConversionError(f"{key} has {kind!r}; expected {plain} or {attending}")
        by_level = types if key == "down_block_types" else types[::-1]
        found[key] = tuple(level for level, kind in enumerate(by_level) if kind == attending)
    if found["down_block_types"] != found["up_block_types"]:
        raise ConversionError(
            f"the encoder has attention at levels {found['down_block_types']}, the decoder at "
            f"{found['up_block_types']}; expected equal levels"
        )
    return found["down_block_types"]


def _side(sample_size: Any, factor: int) -> int:
    """Returns the side of an example image: the nearest multiple of the factor that is not smaller.

    It enters no computation.  Some files give height and width, some a side that the model itself cannot take.
    """
    sides = sample_size if isinstance(sample_size, list) else [sample_size]
    if not sides or not all(type(side) is int and side > 0 for side in sides):
        raise ConversionError(f"sample_size={sample_size!r} must be a number of pixels, or two of them")
    return -(-max(sides) // factor) * factor


def _as_written(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys that count: diffusers ignores the values of keys listed in `_use_default_values`."""
    defaulted = fields.get("_use_default_values") or []
    if not isinstance(defaulted, list):
        raise ConversionError(f"_use_default_values={defaulted!r} must be a list of keys")
    return {key: value for key, value in fields.items() if key not in defaulted}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
