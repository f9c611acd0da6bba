"""The flags of `flax-vae-train`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from flax_vae.images import ADDRESSES, FORMATS
from flax_vae.train.config import RENAMED

_RECIPE = "(default: the preset's own)"
_NONE = "(default: none)"


@dataclass(frozen=True)
class Flags:
    """Trains an image autoencoder on photographs and exports it as a model folder.

    Without arguments: the preset `tiny`, on the photographs that the package ships, in a few minutes on two CPU cores.
    A run that was interrupted goes on where it was: start it again with the same --workdir.

    What is set more than once: the preset's recipe is below a run begun before, that below --config, that below the
    other flags, those below --set.

    Other commands, each with a --help of its own:
      flax-vae-train eval RUN_OR_MODEL --data DATA    measures a finished model
      flax-vae-train plan --topology v5e:4x4          says what a run would take on TPUs that are elsewhere
    """

    preset: Annotated[str | None, arg(metavar="P", help_behavior_hint="(default: tiny)")] = None
    """Which architecture, and the recipe that it is trained by."""
    workdir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: runs/NAME)")] = None
    """The run directory; a run that was begun there goes on, with its own settings where no flag is given.
    NAME is the preset, or else the name of the file in --config or --start-from."""
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=_NONE)] = None
    """Settings as YAML or JSON: any of those in a run's config.json, and preset."""
    settings: Annotated[
        UseAppendAction[tuple[str, ...]], arg(name="set", metavar="NAME=VALUE", help_behavior_hint="(repeatable)")
    ] = ()
    """Any setting by its name in config.json, such as loss.lpips_weight=1."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Print the whole configuration, sizes, memory and what would be read; write nothing."""
    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Updates of the whole run."""
    seed: Annotated[int | None, arg(metavar="S", help_behavior_hint="(default: 0)")] = None
    """Of the initial weights, the crops and the noise."""
    start_from: Annotated[str | None, arg(metavar="PATH", help_behavior_hint="(default: random weights)")] = None
    """Weights to begin with, of any kind that can be read; they say the architecture where no preset is named."""
    raw_weights: FlagCreatePairsOff[bool] = False
    """Of a checkpoint of training that holds both, begin with the weights themselves, not with their moving average."""
    graft: FlagCreatePairsOff[bool] = False
    """Add to those weights, as zeros, the attention or time that the architecture has and they have not."""
    trainable: Annotated[
        Literal["all", "decoder"] | None, arg(metavar="all|decoder", help_behavior_hint="(default: all)")
    ] = None
    """What learns; with decoder the latents stay what they were."""
    parallel: Annotated[
        Literal["pmap", "mesh"] | None, arg(metavar="pmap|mesh", help_behavior_hint="(default: pmap)")
    ] = None
    """How the step is compiled for all devices."""
    zero: FlagCreatePairsOff[bool] = False
    """Share out the optimisers' states and the average over the devices; needs --parallel mesh."""
    devices_per_image: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1)")] = None
    """Devices that share the rows of each image, where one is too large for a device; needs --parallel mesh."""
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        arg(metavar="float32|bfloat16", help_behavior_hint="(default: float32)"),
    ] = None
    """Of the computation; parameters and statistics stay float32."""
    remat: Annotated[
        Literal["none", "attention", "blocks"] | None,
        arg(metavar="none|attention|blocks", help_behavior_hint="(default: none)"),
    ] = None
    """What the backward pass computes again instead of keeping: less memory, more time."""
    compilation_cache: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint=_NONE)] = None
    """Where compiled programs are kept, so that the next run with the same settings starts at once."""
    data: Annotated[
        str | None,
        arg(
            metavar="DATA",
            help=f"Images of any size: {ADDRESSES}.  Image files are {FORMATS}.",
            help_behavior_hint="(default: the shipped photographs)",
        ),
    ] = None
    accept_changed_data: FlagCreatePairsOff[bool] = False
    """Go on although images were added, removed or edited since the run began; config.json records it."""
    held_out: Annotated[str | None, arg(metavar="PATH", help_behavior_hint="(default: the last by name)")] = None
    """The image of that folder to hold out instead."""
    bad_files: Annotated[
        Literal["refuse", "skip"] | None, arg(metavar="refuse|skip", help_behavior_hint="(default: refuse)")
    ] = None
    """What becomes of images that are damaged or smaller than the crops; ten, or one in a hundred, may be skipped."""
    resize: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: as they are)")] = None
    """Scale every image first, until its shorter side has so many pixels: what small ones need."""
    crop_size: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Side of the random crops in pixels."""
    batch_size: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Crops per update, over all devices together."""
    accumulate: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Parts that a batch is computed in, one after the other: less memory, the same update."""
    learning_rate: Annotated[float | None, arg(metavar="X", help_behavior_hint=_RECIPE)] = None
    """Peak of the schedule."""
    warmup_steps: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Updates until the peak."""
    ema_decay: Annotated[float | None, arg(metavar="X", help_behavior_hint=_RECIPE)] = None
    """Of the moving average of the weights, which is then evaluated and exported; 0 keeps none."""
    kl_weight: Annotated[float | None, arg(metavar="X", help_behavior_hint=_RECIPE)] = None
    """Weight of the KL divergence in the loss."""
    log_every: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Updates between two lines of metrics.jsonl."""
    eval_every: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Updates between two looks at the held-out photograph."""
    save_every: Annotated[int | None, arg(metavar="N", help_behavior_hint=_RECIPE)] = None
    """Updates between two checkpoints."""
    tensorboard: FlagCreatePairsOff[bool] = False
    """Write curves and pictures for TensorBoard too, to DIR/tensorboard; needs the extra of that name."""
    distributed: FlagCreatePairsOff[bool] = False
    """This is one process of several; a TPU pod, SLURM or Open MPI says which."""
    coordinator: Annotated[str | None, arg(metavar="HOST:PORT", help_behavior_hint=_NONE)] = None
    """Elsewhere: the address of process 0; every process is given the same, and the same other flags."""
    processes: Annotated[int | None, arg(metavar="N", help_behavior_hint=_NONE)] = None
    """How many processes there are."""
    process: Annotated[int | None, arg(metavar="I", help_behavior_hint=_NONE)] = None
    """Which of them this is, from 0."""
    join_timeout: Annotated[
        float | None, arg(metavar="SECONDS", help_behavior_hint="(default: 45; with --distributed 300)")
    ] = None
    """Time in which all processes must have started."""


# The part of the configuration in which each flag that changes it belongs.
OWNERS: dict[str, tuple[str, ...]] = {
    "": (
        *(
            "steps",
            "seed",
            "start_from",
            "raw_weights",
            "graft",
            "trainable",
            "parallel",
            "zero",
            "devices_per_image",
            "dtype",
            "remat",
        ),
        *("batch_size", "log_every", "eval_every", "save_every", "tensorboard"),
    ),
    "data": ("held_out", "bad_files", "resize", "crop_size"),
    "optim": ("learning_rate", "warmup_steps", "accumulate", "ema_decay"),
    "loss": ("kl_weight",),
}


def rename_flags(args: Sequence[str]) -> list[str]:
    """Returns the arguments of a command with the flags of earlier versions replaced by those of today.

    Help and errors then name only the flags of today.
    """
    flags = {_flag(old): _flag(new) for old, new in RENAMED.items()}
    names = (arg.partition("=") for arg in args)
    return ["".join((flags.get(name.replace("_", "-"), name), *value)) for name, *value in names]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
