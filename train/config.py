"""What a run is: frozen, validated, JSON-able.  No heavy imports, so that `--help` answers at once."""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from convert.architecture import AutoEncoderParams


@dataclass(frozen=True)
class DataConfig:
    """Which photographs, and what a step sees of them.

    Attributes:
      folder: a folder of images, searched recursively; None means the photographs that the package ships.
      held_out: path inside the folder of the one photograph that is never trained on; None means `chelsea.jpg` of the
        shipped ones, and of a folder the last by name.
      crop_size: side of the random square crops, in pixels.
      shuffle_channels: show red, green and blue in random order: a few photographs then hold many more colours.

    Raises:
      ValueError: if `crop_size` is less than 1.
    """

    folder: str | None = None
    held_out: str | None = None
    crop_size: int = 256
    shuffle_channels: bool = False

    def __post_init__(self):
        _at_least(1, crop_size=self.crop_size)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW behind a clip, under a linear warm-up and a cosine.

    Attributes:
      learning_rate: the peak, reached after the warm-up.
      final_fraction: of the peak that the cosine ends at.
      warmup_steps: updates until the peak; never more than half of a short run.
      b1: decay of the first moment.
      b2: decay of the second moment.
      weight_decay: decoupled, on convolution and dense kernels only.
      clip_norm: largest global norm of the gradient; a longer one is scaled down to it.

    Raises:
      ValueError: if a number is outside its range.
    """

    learning_rate: float = 1e-4
    final_fraction: float = 0.01
    warmup_steps: int = 1_000
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1e-4
    clip_norm: float = 1.0

    def __post_init__(self):
        _at_least(0, warmup_steps=self.warmup_steps)
        _positive(learning_rate=self.learning_rate, clip_norm=self.clip_norm)
        _from_zero(weight_decay=self.weight_decay)
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 0 and less than 1")
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction={self.final_fraction!r} must be between 0 and 1")


@dataclass(frozen=True)
class LossConfig:
    """What is minimised; `train.losses` has the formulas.

    Attributes:
      kl_weight: of the KL divergence.  Both terms are divided by the numbers in an image, so the weights of the
        literature (LDM: 1e-6) mean the same here.
      sample: decode a latent drawn from the posterior; otherwise its mean.

    Raises:
      ValueError: if `kl_weight` is negative.
    """

    kl_weight: float = 1e-6
    sample: bool = True

    def __post_init__(self):
        _from_zero(kl_weight=self.kl_weight)


@dataclass(frozen=True)
class TrainConfig:
    """One run, from the architecture to the last step.

    Attributes:
      model: the architecture.
      data: see `DataConfig`.
      optim: see `OptimConfig`.
      loss: see `LossConfig`.
      batch_size: crops per update, over all devices together.
      steps: updates of the whole run.
      seed: of the initial weights, the crops and the noise.
      transparent_start: change the initial weights so that a small model learns faster; see `train.initial`.
      parallel: how the step is compiled for several devices; both compute the same.
      dtype: of the computation.  Parameters, statistics of the normalisations and the optimiser's state are float32.
      remat: what the backward pass computes again instead of keeping; see `flax_vae.AutoEncoder`.
      log_every: updates between two lines of `metrics.jsonl`.
      eval_every: updates between two evaluations on the held-out photograph.
      save_every: updates between two checkpoints.

    Raises:
      ValueError: if a number is out of range, the crop does not fit the model, or the model needs a time.
    """

    model: AutoEncoderParams
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    batch_size: int = 8
    steps: int = 100_000
    seed: int = 0
    transparent_start: bool = False
    parallel: Literal["pmap", "mesh"] = "pmap"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "attention", "blocks"] = "none"
    log_every: int = 50
    eval_every: int = 1_000
    save_every: int = 200

    def __post_init__(self):
        _at_least(0, seed=self.seed)
        names = ("batch_size", "steps", "log_every", "eval_every", "save_every")
        _at_least(1, **{name: getattr(self, name) for name in names})
        _one_of(("pmap", "mesh"), parallel=self.parallel)
        _one_of(("float32", "bfloat16"), dtype=self.dtype)
        _one_of(("none", "attention", "blocks"), remat=self.remat)
        if self.data.crop_size % self.model.factor:
            raise ValueError(
                f"crop_size={self.data.crop_size} is no multiple of {self.model.factor}, the factor of the model"
            )
        if self.model.in_channels != 3 or self.model.out_ch != 3:
            raise ValueError(
                f"in_channels={self.model.in_channels} and out_ch={self.model.out_ch} must both be 3: photographs are "
                "read as RGB"
            )
        if self.model.time_emb_dim is not None:
            raise ValueError(
                f"time_emb_dim={self.model.time_emb_dim}: photographs have no time to condition on; train an "
                "architecture with time_emb_dim=None, e.g. seed-flux"
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values, in order."""
        parts = {name: vars(getattr(self, name)) for name in _PARTS}
        return {**vars(self), **{name: dict(part) for name, part in parts.items()}, "model": self.model.to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TrainConfig":
        """The inverse of `to_dict`.

        Raises:
          ValueError: if a field is unknown (with the nearest known name), missing, or out of range.
        """
        _refuse_unknown(cls, fields)
        if "model" not in fields:
            raise ValueError("the configuration lacks model, the architecture")
        parts: dict[str, Any] = {"model": AutoEncoderParams.from_dict(fields["model"])}
        for name, part in _PARTS.items():
            _refuse_unknown(part, fields.get(name, {}))
            parts[name] = part(**fields.get(name, {}))
        return cls(**{**fields, **parts})


_PARTS = {"data": DataConfig, "optim": OptimConfig, "loss": LossConfig}


def differences(before: TrainConfig, after: TrainConfig) -> list[str]:
    """One `name: before -> after` for each field, nested ones dotted, that differs."""
    old, new = _flatten(before.to_dict()), _flatten(after.to_dict())
    return [f"{name}: {old[name]!r} -> {new[name]!r}" for name in new if old[name] != new[name]]


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _refuse_unknown(cls: type, fields: Mapping[str, Any]) -> None:
    known = [known.name for known in dataclasses.fields(cls)]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known fields are {', '.join(known)}"
            raise ValueError(f"unknown field {name!r} of {cls.__name__}; {hint}")


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")


def _one_of(choices: tuple[str, ...], **values: str) -> None:
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name}={value!r} must be {' or '.join(map(repr, choices))}")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value!r} must be greater than 0")


def _from_zero(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={value!r} must be at least 0")
