"""Sections of flags, and options that several commands share."""

from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, arg

from flax_vae.convert.architecture import ALL_PRESETS

T = TypeVar("T")

# A field that is a dataclass of options.  Help lists them under the field's name; their own names leave it out.
Section = Annotated[T, OmitArgPrefixes, FlagCreatePairsOff]

NONE = "(default: none)"
OFF = "off"

if TYPE_CHECKING:
    Preset = str
else:  # tyro lists the choices and checks them
    Preset = Literal[tuple(ALL_PRESETS)]

PresetOption = Annotated[
    Preset | None,
    arg(
        metavar="P",
        help=f"Architecture, if none is stored with the weights: {', '.join(ALL_PRESETS)}.",
        help_behavior_hint=NONE,
    ),
]
RawWeightsOption = Annotated[
    bool, arg(help="Use the raw weights of a training checkpoint instead of their moving average, if it holds both.")
]
PrefixOption = Annotated[
    str | None,
    arg(
        metavar="STR",
        help="Prefix of the autoencoder's names, if the file holds several autoencoders.",
        help_behavior_hint=NONE,
    ),
]
VariantOption = Annotated[
    str | None,
    arg(
        metavar="STR",
        help="Variant to read from a diffusers folder that holds several, such as fp16.",
        help_behavior_hint=NONE,
    ),
]
CacheOption = Annotated[
    str | None,
    arg(
        metavar="DIR",
        help=f"Folder for compiled programs, which later starts load instead of compiling; {OFF} stores none.",
        help_behavior_hint="(default: $JAX_COMPILATION_CACHE_DIR, or flax-vae in the user's cache folder)",
    ),
]
