"""The flags of `flax-vae-train`: those of the command, and one for each setting of a run."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar

from tyro.conf import OmitArgPrefixes, arg

from flax_vae.convert.console import NONE, CacheOption, Section, parse_flags
from flax_vae.images import ADDRESSES, FORMATS
from flax_vae.train.cli.together import DistributionFlags
from flax_vae.train.config import RENAMED, TrainConfig, preset_names, recipe, setting_types

_TOP = "training"  # section of the settings that are in none
PRESET_HELP = f"Architecture and recipe: {', '.join(preset_names())}."

# Short names of settings; all others are given by their names in config.json.
SHORT_NAMES = {
    "data.folder": "--data",
    "data.held_out": "--held-out",
    "data.bad_files": "--bad-files",
    "data.resize": "--resize",
    "data.crop_size": "--crop-size",
    "optim.learning_rate": "--learning-rate",
    "optim.part_learning_rates": "--part-learning-rates",
    "optim.warmup_steps": "--warmup-steps",
    "optim.accumulate": "--accumulate",
    "optim.ema_decay": "--ema-decay",
    "loss.kl_weight": "--kl-weight",
    "validation.data": "--validation",
    "validation.images": "--validation-images",
    "validation.patience": "--patience",
}

_HELP = {
    "data.folder": f"Images of any size: {ADDRESSES}.  Image files are {FORMATS}.",
    "validation.data": f"Images that judge the run: {ADDRESSES}.",
}
# tyro would write {None}|STR; None is accepted where a setting may have no value.
_METAVARS = {
    bool | None: "{True,False}",
    str | None: "STR",
    float | None: "FLOAT",
    int | None: "INT",
    tuple[int, ...] | None: "[INT [INT ...]]",
    tuple[float, ...] | None: "[FLOAT [FLOAT ...]]",
}
_DEFAULTS = {
    "data.folder": "the shipped photographs",
    "data.held_out": "the last image by name",
    "validation.data": "the held-out image",
}

AnyFlags = TypeVar("AnyFlags")


@dataclass(frozen=True)
class RecipeFlags:
    """What the settings of the run start from."""

    preset: Annotated[str | None, arg(metavar="P", help=PRESET_HELP, help_behavior_hint="(default: tiny)")] = None
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=NONE)] = None
    """Settings as YAML or JSON: any of those in a run's config.json, and preset."""


@dataclass(frozen=True)
class RunFlags(RecipeFlags):
    """The run and its directory."""

    workdir: Annotated[
        Path | None,
        arg(
            metavar="DIR",
            help="Run directory, or gs://bucket/folder; a run that was begun there is resumed with its own settings, "
            "except those given by flags.  NAME is the preset, or else the name of the file in --config or "
            "--start-from.",
            help_behavior_hint="(default: runs/NAME)",
        ),
    ] = None
    dry_run: bool = False
    """Print the whole configuration, sizes, memory and the files that would be read; write nothing."""
    fit: bool = False
    """Increase --remat, and then --accumulate, until a step fits the memory of the devices here, by compiling it; for a
    run that is not resumed."""
    accept_changed_data: bool = False
    """Resume although images were added, removed or edited since the run began; config.json records it."""
    take_over: bool = False
    """Take a run in a bucket over from a trainer that has ended; the error that refuses a start says when."""
    compilation_cache: CacheOption = None


@dataclass(frozen=True)
class Flags:
    """Trains an image autoencoder on photographs and exports it as a model folder.

    Without arguments, trains the preset `tiny` on the photographs of the package, in a few minutes on two CPU cores.
    To resume an interrupted run, start it again with the same --workdir.

    Every setting of a run has a flag.  The recipe of the preset is overridden by the settings of a run that is resumed,
    those by --config, and those by flags.

    Other commands, each with a --help of its own:
      flax-vae-train eval RUN_OR_MODEL --data DATA    measures a trained model
      flax-vae-train compare RUN RUN...               shows runs side by side on one page
      flax-vae-train plan --topology v5e:4x4          estimates memory, step time and cost on TPUs and GPUs
      flax-vae-train recipes                          lists the recipes, their hardware, memory and time
    """

    run: Section[RunFlags] = RunFlags()
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that were given by flags, nested as in config.json."""
    distribution: Section[DistributionFlags] = DistributionFlags()


def parse_run_flags(flags: type[AnyFlags], *, prog: str, args: Sequence[str] | None = None) -> AnyFlags:
    """Parses flags that include all settings of a run.

    Args:
      flags: Dataclass with a field `settings`, which receives the settings that were given.
      prog: Name of the command.
      args: Arguments after the command's name; None takes those of the process.

    Raises:
      SystemExit: With code 2 for a mistake, which is printed in one line; with code 0 after `--help`.
    """
    words = rename_flags(sys.argv[1:] if args is None else args)
    for index, word in enumerate(words):
        if word.partition("=")[0] == "--set":
            name, _, value = (word.partition("=")[2] or "".join(words[index + 1 : index + 2])).partition("=")
            print(
                f"{prog}: --set is no longer an option; use {_flag(name)} {value}; see {prog} --help", file=sys.stderr
            )
            raise SystemExit(2)
    settings = Annotated[_settings_type((TrainConfig,), _shown_recipe(words)), arg(name="")]
    extended = dataclasses.make_dataclass(
        flags.__name__, [("settings", settings, field(default_factory=dict))], bases=(flags,), frozen=True
    )
    extended.__doc__ = flags.__doc__
    parsed = parse_flags(extended, prog=prog, args=words)
    given = dict(parsed.settings)
    return dataclasses.replace(parsed, settings=given.pop(_TOP, {}) | given)


def rename_flags(args: Sequence[str]) -> list[str]:
    """Returns the arguments of a command with the flags of earlier versions replaced by those of today.

    Help and errors then name only the flags of today.
    """
    flags = {_flag(old): _flag(new) for old, new in RENAMED.items()}
    names = (arg.partition("=") for arg in args)
    return ["".join((flags.get(name.replace("_", "-"), name), *value)) for name, *value in names]


def _settings_type(section: tuple[type, ...], defaults: Any, prefix: str = "") -> Any:
    """Returns a type of nested, optional settings for tyro, with the defaults for its help.

    The settings that are in no section of the config are in one named `training`.  A section of several dataclasses has
    the fields of all; help describes a field as the first one with it does.
    """
    lines: dict[str, str] = {}
    for one in reversed(section):
        lines |= _attribute_lines(one)
    fields: dict[str, Any] = {}
    sections: dict[str, Any] = {}
    for name, hint in setting_types(*section).items():
        full, default = prefix + name, getattr(defaults, name, None)
        if isinstance(hint, tuple):
            sections[name] = _settings_type(hint, default, f"{full}.")
            continue
        fields[name] = Annotated[
            hint,
            arg(
                aliases=(SHORT_NAMES[full],) if full in SHORT_NAMES else (),
                metavar=_METAVARS.get(hint),
                help=_HELP.get(full, lines[name]),
                help_behavior_hint=f"(default: {_shown(default) or _DEFAULTS.get(full, 'none')})",
            ),
        ]
    about = (inspect.getdoc(section[0]) or "").partition("\n")[0]
    kind = _optional(section[0].__name__, about, fields)
    return _optional("", "", {_TOP: OmitArgPrefixes[kind], **sections}) if sections else kind


def _optional(name: str, about: str, fields: dict[str, Any]) -> Any:
    kind = TypedDict(name, fields, total=False)  # pyright: ignore[reportArgumentType] - made at run time
    kind.__doc__ = about
    return kind


def _attribute_lines(section: type) -> dict[str, str]:
    """Returns the text of each field in the section `Attributes` of a class's docstring."""
    lines = inspect.cleandoc(section.__doc__ or "").partition("\nAttributes:\n")[2].partition("\n\n")[0]
    _, *found = re.split(r"^  (\w+): ", lines, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in zip(found[::2], found[1::2], strict=True)}


def _shown_recipe(words: Sequence[str]) -> TrainConfig:
    """Returns the recipe whose values help gives as defaults."""
    given = " ".join(words).replace("=", " ").split()
    names = [name for flag, name in zip(given, given[1:], strict=False) if flag == "--preset"]
    try:
        return recipe(names[-1], "weights") if names else recipe("tiny")
    except ValueError:  # reported when the settings are resolved
        return recipe("tiny")


def _shown(value: Any) -> str:
    """Returns a default as it is typed, or an empty text for no value."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
