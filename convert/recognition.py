"""What a heap of named tensors is: which of them are an autoencoder, in which layout, of which architecture.

The shapes tell the widths, the levels and the switches that add tensors.  They do not tell scale, shift and padding,
and a wrong one of these gives wrong images without an error: those come
from a configuration or a preset, or not at all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from convert.architecture import AutoEncoderParams
from convert.errors import ConversionError
from convert.files import ArrayLike
from convert.layouts import LAYOUTS, Layout
from convert.presets import PRESETS
from convert.table import expand, translate

# What stands before the names in the wild: Stable Diffusion checkpoints, ComfyUI, DataParallel, torch.compile.
PREFIXES = ("first_stage_model", "vae", "module", "_orig_mod")

# What Lightning keeps beside an autoencoder that was trained with LDM: the discriminator, and a flattened average.
BAGGAGE = ("loss.", "model_ema.")

# What no shape tells, and what they are taken for until a configuration or a preset says it.
UNTOLD = {
    "resolution": 256,
    "scale_factor": 1.0,
    "shift_factor": 0.0,
    "downsample_padding": "asymmetric",
    "time_embedding": "linear",
    "clamp_logvar": True,
}


@dataclass(frozen=True)
class Weights:
    """An autoencoder's weights, understood.

    Attributes:
      tensors: key to array, in `layout`.
      layout: how they are named and shaped.
      params: the architecture; where `settled` is off, only as far as shapes tell.
      settled: whether scale, shift and padding were said by a configuration or a preset.
      prefix: what stood before every key and was taken off.
      left_out: keys of the source that belong to something else.
      kept: what a configuration of diffusers says beyond the architecture; a folder for diffusers says it again.
    """

    tensors: Mapping[str, ArrayLike]
    layout: str
    params: AutoEncoderParams
    settled: bool = True
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)

    def to(self, layout: str) -> dict[str, Any]:
        """Returns the tensors in another layout, as views; what is made later stays so.

        Raises:
          ConversionError: if they are not those of the architecture, or the layout cannot express it.
        """
        return translate(self.tensors, self.params, self.layout, layout)


def understand(tensors: Mapping[str, ArrayLike], params: AutoEncoderParams | None = None) -> Weights:
    """Finds the autoencoder among the tensors, its layout and its architecture.

    Args:
      tensors: key to array; more than an autoencoder may be in it.
      params: the architecture where it is known; otherwise it is inferred as far as shapes tell.

    Raises:
      ConversionError: if there is no autoencoder of this family, or more than one; if it is not complete, with the
        nearest layout and the difference; if it is not of the architecture `params`.
    """
    inside, prefix, left_out = _find(tensors)
    layout, inferred = _nearest(inside)
    try:
        translate(inside, params or inferred, layout, "flux")  # for its strictness; the views cost nothing
    except ConversionError as error:
        told = _differences(inferred, params) if params else []
        hint = f"the shapes speak of another architecture: {'; '.join(told)}\n" if told else ""
        raise ConversionError(f"{hint}{error}") from None
    return Weights(inside, layout, params or inferred, params is not None, prefix, left_out)


def fitting_presets(inferred: AutoEncoderParams) -> list[str]:
    """Names of the presets whose tensors these are."""
    return [name for name, params in PRESETS.items() if not _differences(inferred, params)]


def nearest_preset(inferred: AutoEncoderParams) -> tuple[str, list[str]]:
    """The preset that differs in the fewest fields that shapes tell, and those fields."""
    name = min(PRESETS, key=lambda name: len(_differences(inferred, PRESETS[name])))
    return name, _differences(inferred, PRESETS[name])


def _differences(found: AutoEncoderParams, expected: AutoEncoderParams) -> list[str]:
    names = [each.name for each in fields(found) if each.name not in UNTOLD]
    pairs = [(name, getattr(found, name), getattr(expected, name)) for name in names]
    return [f"{name} is {here!r}, not {there!r}" for name, here, there in pairs if here != there]


def _find(tensors: Mapping[str, ArrayLike]) -> tuple[dict[str, ArrayLike], str, tuple[str, ...]]:
    anchors = {layout.key("in", "", "kernel", s="encoder") for layout in LAYOUTS.values()}
    prefixes = {key.removesuffix(a) for key in tensors for a in anchors if a and (key == a or key.endswith(f".{a}"))}
    if not prefixes:
        raise ConversionError(
            f"no tensor is an encoder's first convolution ({' or '.join(sorted(map(str, anchors)))}); "
            "these are not the weights of an autoencoder of this family"
        )
    if len(prefixes) > 1:
        raise ConversionError(f"there are several autoencoders, under {', '.join(map(repr, sorted(prefixes)))}")
    (prefix,) = prefixes
    unknown = [part for part in prefix.split(".")[:-1] if part not in PREFIXES]
    if unknown:
        raise ConversionError(
            f"the autoencoder stands under {prefix!r}; known are {', '.join(map(repr, PREFIXES))} and their nesting"
        )
    inside, left_out = {}, []
    for key in tensors:
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name.startswith(BAGGAGE):
            left_out.append(key)
        else:
            inside[name] = tensors[key]
    return inside, prefix, tuple(left_out)


def _nearest(tensors: Mapping[str, ArrayLike]) -> tuple[str, AutoEncoderParams]:
    """The layout, and the architecture inferred in it, whose whole set of keys is nearest to the one that is there."""
    candidates: list[tuple[int, str, AutoEncoderParams]] = []
    for name, layout in LAYOUTS.items():
        try:
            params = _infer(tensors, layout)
            keys = {row.theirs for row in expand(params, name)}
        except (KeyError, IndexError, ValueError):  # lacks what every model has in this layout
            continue
        candidates.append((len(keys ^ set(tensors)), name, params))
    if not candidates:
        raise ConversionError(
            f"the {len(tensors)} tensors are in none of the layouts {', '.join(LAYOUTS)}; the first are "
            f"{', '.join(list(tensors)[:4])}"
        )
    _, name, params = min(candidates, key=lambda candidate: candidate[0])
    return name, params


def _infer(tensors: Mapping[str, ArrayLike], layout: Layout) -> AutoEncoderParams:
    def key(place: str, part: str, leaf: str, **indices: Any) -> str:
        name = layout.key(place, part, leaf, **{"s": "encoder", "l": 0, "r": 0, "b": 0} | indices)
        if name is None:
            raise KeyError(place)
        return name

    def shape(kind: str, place: str, part: str, leaf: str, **indices: Any) -> tuple[int, ...]:
        theirs = tensors[key(place, part, leaf, **indices)].shape
        return layout.ops[kind].to_flax(np.broadcast_to(np.zeros(()), theirs)).shape  # a view of one number

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
    if any(width % ch for width in widths):
        raise ValueError(f"widths {widths} are no multiples of {ch}")
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
        **UNTOLD,
    )
