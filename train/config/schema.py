"""What a run is: frozen, validated, JSON-able.  No heavy imports, so that `--help` answers at once."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flax_vae.convert.architecture import AutoEncoderParams, DiscriminatorParams
from flax_vae.train.config.validation import at_least, below_one, check_types, finite, from_zero, one_of, positive


@dataclass(frozen=True)
class DataConfig:
    """Which photographs, and what a step sees of them.

    Attributes:
      folder: Address of the images, see `flax_vae.images.open_images`; None means the photographs that the package
        ships.
      held_out: name of the one photograph that is never trained on: its path inside the folder, elsewhere its number
        from 0; None means `chelsea.jpg` of the shipped ones, and otherwise the last.
      crop_size: side of the random square crops, in pixels.
      shuffle_channels: show red, green and blue in random order: a few photographs then hold many more colours.
      resize: first make the shorter side of each photograph this many pixels; None leaves them as they are.
      min_scale: cut windows of up to 1 / min_scale times the crop's area, and shrink them to the crop; 1 cuts crops as
        they are.  Nothing is ever enlarged, unlike by torchvision's RandomResizedCrop.
      flip: mirror every other crop, left to right.
      bad_files: what becomes of an image that is damaged or smaller than the crop: `refuse` ends the run with a list
        of them, `skip` shows another photograph in its place, always the same one, and reports it.
      max_bad_fraction: of all images that may be skipped; more of them end the run.
      max_bad_count: images that may be skipped whatever the fraction, of at most half of all.

    Raises:
      ValueError: if a number is outside its range.
    """

    folder: str | None = None
    held_out: str | None = None
    crop_size: int = 256
    shuffle_channels: bool = False
    resize: int | None = None
    min_scale: float = 1.0
    flip: bool = True
    bad_files: Literal["refuse", "skip"] = "refuse"
    max_bad_fraction: float = 0.01
    max_bad_count: int = 10

    def __post_init__(self):
        check_types(self)
        at_least(1, crop_size=self.crop_size)
        at_least(0, max_bad_count=self.max_bad_count)
        one_of(("refuse", "skip"), bad_files=self.bad_files)
        if self.resize is not None:
            at_least(1, resize=self.resize)
            if self.resize < self.crop_size:
                raise ValueError(f"resize={self.resize} must be at least crop_size={self.crop_size}")
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"min_scale={self.min_scale!r} must be greater than 0 and at most 1")
        if not 0 <= self.max_bad_fraction < 1:
            raise ValueError(f"max_bad_fraction={self.max_bad_fraction!r} must be at least 0 and less than 1")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW behind a clip, under a linear warm-up and then a cosine or a constant.

    Attributes:
      learning_rate: the peak, reached after the warm-up.
      schedule: after the warm-up: `cosine`, down to `final_fraction` of the peak, or `constant`.
      final_fraction: of the peak that the cosine ends at.
      warmup_steps: updates until the peak; never more than half of a short run.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: Number that is added to the root of the second moment.
      weight_decay: decoupled, on convolution and dense kernels only.
      clip_norm: largest global norm of the gradient; a longer one is scaled down to it.
      accumulate: parts that a batch is computed in, one after the other, with less memory.  Without a discriminator the
        update is that of the whole batch.  With one, its batch norms see each part alone, in the losses and in their
        running statistics; all else is that of the whole batch, for which an adaptive weight costs a second forward
        pass.
      ema_decay: of the moving average of the weights, which is then what is evaluated and exported; 0 keeps none.

    Raises:
      ValueError: if a number is outside its range.
    """

    learning_rate: float = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    final_fraction: float = 0.01
    warmup_steps: int = 1_000
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    accumulate: int = 1
    ema_decay: float = 0.0

    def __post_init__(self):
        check_types(self)
        at_least(0, warmup_steps=self.warmup_steps)
        at_least(1, accumulate=self.accumulate)
        one_of(("cosine", "constant"), schedule=self.schedule)
        positive(learning_rate=self.learning_rate, eps=self.eps, clip_norm=self.clip_norm)
        from_zero(weight_decay=self.weight_decay)
        below_one(b1=self.b1, b2=self.b2, ema_decay=self.ema_decay)
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction={self.final_fraction!r} must be between 0 and 1")


@dataclass(frozen=True)
class LossConfig:
    """What the autoencoder minimises; `flax_vae.train.losses.reconstruction` has the formulas.

    Attributes:
      distance: between an image and its reconstruction, value by value.
      reduction: `mean` divides everything by the numbers in an image, `sum` is LDM's convention: sums over an image,
        the mean over the batch.  The weights below mean the same in both.
      kl_weight: of the KL divergence (LDM: 1e-6).
      free_bits: nats of each latent number's divergence that cost nothing.
      sample: decode a latent drawn from the posterior; otherwise its mean.
      lpips_weight: of the perceptual distance, which is added to every value's own; 0 leaves it out.
      lpips_net: whose features it compares: VGG16's to train with, AlexNet's for less work.
      lpips_weights: file of its weights; None means those of the `lpips` extra.
      learn_logvar: learn the logarithm of the reconstruction's variance: distances are divided by its exponential, and
        it is added.
      logvar: where it starts, and stays unless learned.

    Raises:
      ValueError: if a weight is negative, or a name unknown.
    """

    distance: Literal["l1", "mse", "charbonnier"] = "l1"
    reduction: Literal["mean", "sum"] = "mean"
    kl_weight: float = 1e-6
    free_bits: float = 0.0
    sample: bool = True
    lpips_weight: float = 0.0
    lpips_net: Literal["vgg", "alex"] = "vgg"
    lpips_weights: str | None = None
    learn_logvar: bool = False
    logvar: float = 0.0

    def __post_init__(self):
        check_types(self)
        one_of(("l1", "mse", "charbonnier"), distance=self.distance)
        one_of(("mean", "sum"), reduction=self.reduction)
        one_of(("vgg", "alex"), lpips_net=self.lpips_net)
        from_zero(kl_weight=self.kl_weight, free_bits=self.free_bits, lpips_weight=self.lpips_weight)
        finite(logvar=self.logvar)


@dataclass(frozen=True)
class GanConfig:
    """The discriminator that an autoencoder is trained against; `flax_vae.train.losses.adversarial` has the formulas.

    Attributes:
      weight: of its judgement in the autoencoder's loss (LDM: 0.5); 0 leaves it out.
      start: updates before it begins to judge and to learn (LDM: 50,001); until then it costs nothing.
      loss: what both sides minimise.
      adaptive: multiply the weight so that its gradient at the decoder's last kernel is as long as that of the rest.
      r1: gamma of the penalty on its gradients at real images, of which half the square is added.
      features: channels of its first layer.
      layers: strided convolutions, the first among them.
      learning_rate: of its own Adam, which warms up and falls as the autoencoder's does.
      b1: decay of the first moment.
      b2: decay of the second moment.

    Raises:
      ValueError: if a number is outside its range.
    """

    weight: float = 0.0
    start: int = 50_001
    loss: Literal["hinge", "non_saturating"] = "hinge"
    adaptive: bool = True
    r1: float = 0.0
    features: int = 64
    layers: int = 3
    learning_rate: float = 1e-4
    b1: float = 0.5
    b2: float = 0.9

    def __post_init__(self):
        check_types(self)
        from_zero(weight=self.weight, r1=self.r1)
        at_least(0, start=self.start)
        one_of(("hinge", "non_saturating"), loss=self.loss)
        positive(learning_rate=self.learning_rate)
        below_one(b1=self.b1, b2=self.b2)
        _ = self.discriminator  # which checks the rest

    @property
    def discriminator(self) -> DiscriminatorParams:
        """What the discriminator is."""
        return DiscriminatorParams(features=self.features, layers=self.layers)


@dataclass(frozen=True)
class TimeConfig:
    """Which times a model that is conditioned on one is trained with, a new one for every example.

    A model with `time_embedding="linear"` takes a vector: the sines and cosines of the time.

    Attributes:
      sampler: `uniform` between `low` and `high`, or `logit_normal`: the same range, densest in the middle.
      low: smallest time.
      high: largest time, where the embedding's scale ends at about 1000.
      evaluate_at: the time at which held-out images are reconstructed.

    Raises:
      ValueError: if the range is empty.
    """

    sampler: Literal["uniform", "logit_normal"] = "uniform"
    low: float = 0.0
    high: float = 1000.0
    evaluate_at: float = 0.0

    def __post_init__(self):
        check_types(self)
        one_of(("uniform", "logit_normal"), sampler=self.sampler)
        finite(low=self.low, high=self.high, evaluate_at=self.evaluate_at)
        if not self.low < self.high:
            raise ValueError(f"low={self.low!r} must be less than high={self.high!r}")


@dataclass(frozen=True)
class TrainConfig:
    """One run, from the architecture to the last step.

    Attributes:
      model: the architecture.
      data: see `DataConfig`.
      optim: see `OptimConfig`.
      loss: see `LossConfig`.
      gan: see `GanConfig`.
      time: see `TimeConfig`.
      start_from: a file or folder, as `flax_vae.from_pretrained` reads it, whose weights the run begins with.
      raw_weights: whether a checkpoint of training gives its weights themselves and not their moving average.
      graft: those weights lack what the architecture adds to them (attention, time): add it as zeros, so that the
        function is the same; see `flax_vae.convert.table.grafting`.
      trainable: `all`, or `decoder`: the encoder then stays as it was, bit for bit.
      batch_size: crops per update, over all devices together.
      steps: updates of the whole run.
      seed: of the initial weights, the crops and the noise.
      identity_init: change the initial weights so that a small model learns faster; see
        `flax_vae.train.identity_init`.
      parallel: how the step is compiled for several devices; both compute the same.
      zero: keep only a share of the optimisers' states and of the moving average on each device; needs `mesh`.
      devices_per_image: devices that share the rows of each image, where one is too large for a device; needs `mesh`.
      dtype: of the computation.  Parameters, statistics of the normalisations and the optimiser's state are float32.
      remat: what the backward pass computes again instead of keeping; see `flax_vae.AutoEncoder`.
      log_every: updates between two lines of `metrics.jsonl`.
      eval_every: updates between two evaluations on the held-out photograph.
      save_every: updates between two checkpoints.
      keep: newest checkpoints that are kept, beside the best one and the newest that a later finite update has proven.
      max_skipped: an update whose loss or gradient is not finite is left out; more than this many in a row end the run.
      tensorboard: whether curves and pictures are written to `tensorboard/` in the run directory too; needs the extra
        of that name.

    Raises:
      ValueError: if a number is out of range, or two settings contradict each other.
    """

    model: AutoEncoderParams
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    gan: GanConfig = field(default_factory=GanConfig)
    time: TimeConfig = field(default_factory=TimeConfig)
    start_from: str | None = None
    raw_weights: bool = False
    graft: bool = False
    trainable: Literal["all", "decoder"] = "all"
    batch_size: int = 8
    steps: int = 100_000
    seed: int = 0
    identity_init: bool = False
    parallel: Literal["pmap", "mesh"] = "pmap"
    zero: bool = False
    devices_per_image: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "attention", "blocks"] = "none"
    log_every: int = 50
    eval_every: int = 1_000
    save_every: int = 200
    keep: int = 2
    max_skipped: int = 10
    tensorboard: bool = False

    def __post_init__(self):
        check_types(self)
        at_least(0, most=2**63 - 1, seed=self.seed)
        at_least(0, max_skipped=self.max_skipped)
        names = ("batch_size", "steps", "devices_per_image", "log_every", "eval_every", "save_every", "keep")
        at_least(1, **{name: getattr(self, name) for name in names})
        one_of(("pmap", "mesh"), parallel=self.parallel)
        one_of(("float32", "bfloat16"), dtype=self.dtype)
        one_of(("none", "attention", "blocks"), remat=self.remat)
        one_of(("all", "decoder"), trainable=self.trainable)
        self._check_model()
        self._check_together()

    def _check_model(self) -> None:
        if self.data.crop_size % self.model.factor:
            raise ValueError(
                f"crop_size={self.data.crop_size} is no multiple of {self.model.factor}, the factor of the model"
            )
        if self.data.crop_size // self.model.factor % self.devices_per_image:
            raise ValueError(
                f"crop_size={self.data.crop_size} makes latents of {self.data.crop_size // self.model.factor} rows, "
                f"which devices_per_image={self.devices_per_image} cannot share evenly; use a multiple of "
                f"{self.model.factor * self.devices_per_image}"
            )
        if self.model.in_channels != 3 or self.model.out_ch != 3:
            raise ValueError(
                f"in_channels={self.model.in_channels} and out_ch={self.model.out_ch} must both be 3: photographs are "
                "read as RGB"
            )
        if self.model.time_emb_dim is not None and self.model.time_emb_dim % 2:
            raise ValueError(
                f"time_emb_dim={self.model.time_emb_dim} must be even: half of a time's numbers are sines, half cosines"
            )

    def _check_together(self) -> None:
        if self.zero and self.parallel != "mesh":
            raise ValueError(f"zero=True shares states out over a mesh; parallel={self.parallel!r} must then be 'mesh'")
        if self.devices_per_image > 1 and self.parallel != "mesh":
            raise ValueError(
                f"devices_per_image={self.devices_per_image} cuts images over a mesh; parallel={self.parallel!r} must "
                "then be 'mesh'"
            )
        if self.raw_weights and self.start_from is None:
            raise ValueError("raw_weights=True chooses among the weights of a checkpoint; name it with start_from")
        if self.graft and self.start_from is None:
            raise ValueError("graft=True adds to published weights; name them with start_from")
        if self.identity_init and self.start_from is not None:
            raise ValueError(
                f"identity_init=True changes fresh weights, not those of start_from={self.start_from!r}; choose one"
            )
        if self.trainable == "decoder" and self.start_from is None:
            raise ValueError("trainable='decoder' keeps an encoder as it is; name the weights it has with start_from")
        if self.gan.weight and self.data.crop_size < self.gan.discriminator.smallest:
            raise ValueError(
                f"crop_size={self.data.crop_size} is too small for gan.layers={self.gan.layers}, which need "
                f"{self.gan.discriminator.smallest} pixels; choose fewer layers"
            )
        if self.batch_size % self.optim.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be computed in accumulate={self.optim.accumulate} equal parts"
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
        fields = rename_settings(fields)
        _refuse_unknown(cls, fields)
        if "model" not in fields:
            raise ValueError("the configuration lacks model, the architecture")
        parts: dict[str, Any] = {"model": AutoEncoderParams.from_dict(fields["model"])}
        for name, part in _PARTS.items():
            _refuse_unknown(part, fields.get(name, {}))
            parts[name] = part(**fields.get(name, {}))
        return cls(**{**fields, **parts})


_PARTS = {"data": DataConfig, "optim": OptimConfig, "loss": LossConfig, "gan": GanConfig, "time": TimeConfig}


# Names that settings had in earlier versions; files written then are still read.
RENAMED = {"train": "trainable", "rows": "devices_per_image", "transparent_start": "identity_init"}


def rename_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with the names of earlier versions replaced by those of today.

    Raises:
      ValueError: If a setting is given under both names.
    """
    for old, new in RENAMED.items():
        if old in fields and new in fields:
            raise ValueError(f"{old} and {new} are one setting; leave out {old}, the name of an earlier version")
    return {RENAMED.get(name, name): value for name, value in fields.items()}


def config_differences(before: TrainConfig, after: TrainConfig) -> list[str]:
    """One `name: before -> after` for each field, nested ones dotted, that differs."""
    old, new = flatten_config(before.to_dict()), flatten_config(after.to_dict())
    return [f"{name}: {old[name]!r} -> {new[name]!r}" for name in new if old[name] != new[name]]


def flatten_config(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested fields under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= flatten_config(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _refuse_unknown(cls: type, fields: Mapping[str, Any]) -> None:
    known = [known.name for known in dataclasses.fields(cls)]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known fields are {', '.join(known)}"
            raise ValueError(f"unknown field {name!r} of {cls.__name__}; {hint}")
