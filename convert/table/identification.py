"""Identifies the autoencoder in a state dict: its layout and architecture.

Widths, levels and optional modules are inferred from shapes.  Scale, shift and padding cannot be inferred, and a wrong
value gives wrong images without an error; they come only from a configuration or a preset.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from flax_vae.convert.architecture import (
    PRESETS,
    TINY_PRESETS,
    Architecture,
    AutoEncoderParams,
    TinyAutoEncoderParams,
)
from flax_vae.convert.errors import ConversionError, FlaxVaeError
from flax_vae.convert.formats import ArrayLike, apply
from flax_vae.convert.table.layouts import FAMILIES, Layout
from flax_vae.convert.table.rows import expand, families, translate
from flax_vae.convert.table.tiny_autoencoder import TINY_FAMILIES, infer_tiny

# Module names that wrappers insert, before or inside the halves: DataParallel, torch.compile, FSDP, checkpointing.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

# The first convolution of each half identifies it; the text before `encoder` or `decoder` is the prefix.
_ANCHOR = re.compile(
    rf"(?P<prefix>(.*\.)?)(?P<half>encoder|decoder)(\.({'|'.join(_WRAPPERS)}))*\.conv_in\.weight"
    r"|(?P<flax_prefix>(.*/)?)(?P<flax_half>encoder|decoder)/conv_in/kernel",
    re.DOTALL,
)

# In two layouts of tiny autoencoders layers have numbers only, which modules of other models have too; so these count
# only where no half is found by name.
_NUMBERED_ANCHOR = re.compile(r"(?P<prefix>(.*\.)?)(?P<half>encoder|decoder)\.(layers\.0|[01])\.weight", re.DOTALL)

# Other tensors in a Lightning checkpoint of an autoencoder trained with LDM: the discriminator and a flattened average.
TRAINING_ONLY = ("loss.", "model_ema.")

# Fields that no shape determines, with the values used until a configuration or a preset gives them.
NOT_INFERABLE = {
    "resolution": 256,
    "scale_factor": 1.0,
    "shift_factor": 0.0,
    "downsample_padding": "asymmetric",
    "time_embedding": "linear",
    "clamp_logvar": True,
    "padding_mode": "zeros",
    "latent_mean": None,
    "latent_std": None,
    "batch_norm_eps": 1e-4,
}


@dataclass(frozen=True)
class Weights:
    """Weights of an autoencoder with their layout and architecture.

    Attributes:
      tensors: Arrays by key, in `layout`.
      layout: Name of the layout.
      params: Architecture; where `config_known` is False, only as far as shapes determine it.
      config_known: Whether a configuration or a preset gave scale, shift and padding.
      prefix: Prefix that was removed from every key.
      left_out: Keys of the source that do not belong to the autoencoder.
      kept: Entries of a diffusers configuration beyond the architecture, written back when saving for diffusers.
    """

    tensors: Mapping[str, ArrayLike]
    layout: str
    params: Architecture
    config_known: bool = True
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)

    def to(self, layout: str) -> dict[str, Any]:
        """Returns the tensors in another layout, as views; lazy arrays stay lazy.

        Args:
          layout: Name of the layout, one of `LAYOUTS`.

        Raises:
          ConversionError: If they do not match the architecture, or the layout cannot express it.
        """
        return translate(self.tensors, self.params, self.layout, layout)


def identify(
    tensors: Mapping[str, ArrayLike],
    params: Architecture | None = None,
    *,
    prefix: str | None = None,
    layout: str | None = None,
) -> Weights:
    """Finds the autoencoder among the tensors, its layout and its architecture.

    Args:
      tensors: Arrays by key; may hold more than an autoencoder.
      params: Architecture, if known; None infers it as far as shapes determine it.
      prefix: Prefix of the autoencoder's keys, where there are several autoencoders; None takes the only one.
      layout: Layout of the tensors, if known.

    Returns:
      Weights with their layout and architecture.

    Raises:
      ConversionError: If there is no autoencoder of this family, or more than one and no `prefix`; if tensors are
        missing (names the nearest layout and the difference); if they do not match the architecture `params`.
    """
    inside, prefix, left_out = _find(tensors, prefix)
    nearest, inferred = _nearest(inside, prefix, left_out)
    layout = layout or nearest
    try:
        inside = _as_in_layout(inside, layout, params or inferred)
        translate(inside, params or inferred, layout, "flux")  # checks every tensor; the views cost nothing
    except ConversionError as error:
        told = _differences(inferred, params) if params else []
        hint = f"the shapes belong to another architecture: {'; '.join(told)}\n" if told else ""
        raise ConversionError(f"{hint}{error}") from None
    known = params is not None or isinstance(inferred, TinyAutoEncoderParams)  # no field of which is left open
    return Weights(inside, layout, params or inferred, known, prefix, left_out)


def fitting_presets(inferred: Architecture) -> list[str]:
    """Returns the names of the presets that have exactly these tensors.

    Args:
      inferred: Architecture, as far as shapes determine it.
    """
    return [name for name, params in _presets_like(inferred).items() if not _differences(inferred, params)]


def nearest_preset(inferred: Architecture) -> tuple[str, list[str]]:
    """Returns the preset that differs in the fewest inferable fields, and those fields.

    Args:
      inferred: Architecture, as far as shapes determine it.
    """
    presets = _presets_like(inferred)
    name = min(presets, key=lambda name: len(_differences(inferred, presets[name])))
    return name, _differences(inferred, presets[name])


def _presets_like(params: Architecture) -> Mapping[str, Architecture]:
    return PRESETS if isinstance(params, AutoEncoderParams) else TINY_PRESETS


def _differences(found: Architecture, expected: Architecture) -> list[str]:
    if type(found) is not type(expected):
        return [f"{found.described}, not {expected.described}"]
    names = [each.name for each in fields(found) if each.name not in NOT_INFERABLE]
    pairs = [(name, getattr(found, name), getattr(expected, name)) for name in names]
    return [f"{name} is {here!r}, not {there!r}" for name, here, there in pairs if here != there]


def _find(tensors: Mapping[str, ArrayLike], wanted: str | None) -> tuple[dict[str, ArrayLike], str, tuple[str, ...]]:
    prefix, others = _choose(tensors, wanted)
    inside, left_out = {}, []
    for key in tensors:
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name.startswith(TRAINING_ONLY) or key.startswith(others):
            left_out.append(key)
            continue
        name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if name in inside:
            raise ConversionError(f"there are two tensors {prefix + name!r}, one of them inside a wrapper: {key!r}")
        inside[name] = tensors[key]
    return inside, prefix, tuple(left_out)


def _choose(tensors: Mapping[str, ArrayLike], wanted: str | None) -> tuple[str, tuple[str, ...]]:
    """Returns the prefix of the autoencoder, and the longer prefixes that belong to other modules."""
    halves = _halves(tensors)
    there = halves["encoder"] | halves["decoder"]
    whole = halves["encoder"] & halves["decoder"]
    if wanted is not None:
        known = [prefix for prefix in there if prefix.rstrip("./") == wanted.rstrip("./")]
        if not known:
            raise ConversionError(f"no autoencoder under {wanted!r}; found {_listed(there) or 'none'}")
        (prefix,) = known
    elif len(whole) > 1:
        raise ConversionError(
            f"several autoencoders, under {_listed(whole)}; choose one with prefix=, or with --prefix of "
            "flax-vae-convert"
        )
    elif not there:
        raise ConversionError(
            "no tensor is an encoder's first convolution (encoder.conv_in.weight or encoder/conv_in/kernel); "
            "these are not the weights of an autoencoder of this family"
        )
    else:
        (prefix,) = whole or {min(there)}
    if prefix not in whole:
        half, other = ("encoder", "decoder") if prefix in halves["encoder"] else ("decoder", "encoder")
        under = f" (under {prefix!r})" if prefix else ""
        raise ConversionError(
            f"only {half == 'encoder' and 'an' or 'a'} {half}{under}; expected {other}.conv_in and the rest of "
            f"{other == 'encoder' and 'an' or 'a'} {other} as well; use the file that holds both halves"
        )
    return prefix, tuple(other for other in there if other != prefix and other.startswith(prefix))


def _halves(tensors: Iterable[str]) -> dict[str, set[str]]:
    """Returns the prefixes of encoders and of decoders, by their first convolutions."""
    halves: dict[str, set[str]] = {"encoder": set(), "decoder": set()}
    for match in filter(None, map(_ANCHOR.fullmatch, tensors)):
        halves[match["half"] or match["flax_half"]].add((match["prefix"] or match["flax_prefix"]) or "")
    if not any(halves.values()):
        for match in filter(None, map(_NUMBERED_ANCHOR.fullmatch, tensors)):
            halves[match["half"]].add(match["prefix"] or "")
    return halves


def _listed(prefixes: set[str]) -> str:
    return ", ".join(map(repr, sorted(prefixes)))


def _nearest(tensors: Mapping[str, ArrayLike], prefix: str, left_out: tuple[str, ...]) -> tuple[str, Architecture]:
    """Returns the layout whose set of keys is nearest to the tensors, and the architecture inferred in it."""
    candidates: list[tuple[int, bool, str, Architecture]] = []
    reasons = []
    ways: list[tuple[Layout, Callable[[Mapping[str, ArrayLike], Layout], Architecture]]] = [
        *((layout, _infer) for layout in FAMILIES.values()),
        *((layout, infer_tiny) for layout in TINY_FAMILIES.values()),
    ]
    for layout, infer in ways:
        name = layout.name
        try:
            params = infer(tensors, layout)
        except (KeyError, IndexError):  # lacks a tensor that every model has in this layout
            continue
        except FlaxVaeError as error:
            reasons.append(str(error))
            continue
        try:
            keys = {row.theirs for row in expand(params, name)}
        except ConversionError:  # no name for a module of this architecture
            continue
        # Black Forest Labs and CompVis use the same names.  CompVis' models have quant convolutions or are stored in
        # Lightning checkpoints.
        training_only = any(key.startswith(TRAINING_ONLY) for key in left_out)
        compvis = getattr(params, "quant_conv", False) or "first_stage_model." in prefix or training_only
        candidates.append((len(keys ^ set(tensors)), (name == "ldm") != compvis, name, params))
    if not candidates and reasons:
        raise ConversionError(f"the tensors are those of an autoencoder that cannot be expressed here: {reasons[0]}")
    if not candidates:
        layouts = dict.fromkeys((*FAMILIES, *TINY_FAMILIES))
        raise ConversionError(
            f"the {len(tensors)} tensors are in none of the layouts {', '.join(layouts)}; the first are "
            f"{', '.join(list(tensors)[:4])}"
        )
    *_, name, params = min(candidates, key=lambda candidate: candidate[:2])
    return name, params


def _as_in_layout(tensors: dict[str, ArrayLike], layout: str, params: Architecture) -> dict[str, ArrayLike]:
    """Reshapes 1x1 convolutions to the axes of their layout; some files store them as matrices."""
    if layout not in families(params) or families(params)[layout].flax_names:
        return tensors  # the table refuses a layout without names
    result = dict(tensors)
    for row in expand(params, layout):
        there = result.get(row.theirs)
        matrix = row.torch_shape[:2]
        if there is None or row.shape[:2] != (1, 1) or tuple(there.shape) == row.torch_shape:
            continue
        if tuple(there.shape) in (matrix, (*matrix, 1), (*matrix, 1, 1)):
            shape = row.torch_shape
            result[row.theirs] = apply(lambda array, shape=shape: array.reshape(shape), shape, there)
    return result


def _infer(tensors: Mapping[str, ArrayLike], layout: Layout) -> AutoEncoderParams:
    def key(place: str, part: str, leaf: str, **indices: Any) -> str:
        name = layout.key(place, part, leaf, **{"s": "encoder", "l": 0, "r": 0, "b": 0} | indices)
        if name is None:
            raise KeyError(place)
        return name

    def shape(kind: str, place: str, part: str, leaf: str, **indices: Any) -> tuple[int, ...]:
        theirs = tensors[key(place, part, leaf, **indices)].shape
        if len(theirs) != len(layout.ops[kind].torch_shape((1, 1, 1, 1) if kind == "conv" else (1, 1))):
            raise KeyError(place)
        return layout.ops[kind].to_flax(np.broadcast_to(np.zeros(()), theirs)).shape  # a view of one element

    def has(place: str, part: str, leaf: str, **indices: Any) -> bool:
        return layout.places[place] is not None and key(place, part, leaf, **indices) in tensors

    def count(place: str, index: str, part: str = "conv1") -> int:
        number = 0
        while has(place, part, "kernel", **{index: number}):
            number += 1
        return number

    levels, blocks = count("down", "l"), count("down", "b")
    *_, in_channels, ch = shape("conv", "in", "", "kernel")
    widths = [shape("conv", "down", "conv1", "kernel", l=level)[-1] for level in range(levels)]
    decoder_widths = [
        shape("conv", "up", "conv1", "kernel", l=level, r=levels - 1 - level)[-1] for level in range(levels)
    ]
    if any(width % ch for width in widths):
        raise ConversionError(f"its levels have widths {widths}; expected multiples of the first convolution's {ch}")
    if not levels or not blocks:
        raise KeyError("down")
    factor = 2**levels  # the resolution enters no computation, but must be divisible by every level
    return AutoEncoderParams(
        in_channels=in_channels,
        ch=ch,
        out_ch=shape("conv", "out", "", "kernel", s="decoder")[-1],
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=blocks,
        z_channels=shape("conv", "in", "", "kernel", s="decoder")[-2],
        time_emb_dim=shape("linear", "time", "", "kernel")[0] if has("time", "", "kernel") else None,
        attn_levels=tuple(level for level in range(levels) if has("down_attn", "q", "kernel", l=level)),
        quant_conv=has("quant", "", "kernel"),
        learnable_logvar=has("reg", "", "logvar_scaling"),
        latent_norm="batch_norm" if has("bn", "", "running_mean") else "scale",
        decoder_widths=tuple(decoder_widths),
        mid_attention=has("mid_attn", "q", "kernel"),
        post_quant_conv=has("post_quant", "", "kernel"),
        **NOT_INFERABLE | {"resolution": -(-NOT_INFERABLE["resolution"] // factor) * factor},
    )
