"""The settings of a run, as frozen and validated dataclasses.  Imports no framework, so that `--help` is fast."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from flax_vae.convert.architecture import Architecture, DiscriminatorParams, architecture_from_dict
from flax_vae.convert.errors import ArgumentError, suggest
from flax_vae.train.config.parts import changes_latents, parse_rates, part_rates, trained_paths
from flax_vae.train.config.reduced_latents import SCALES, reduced_size
from flax_vae.train.config.validation import at_least, below_one, check_types, finite, from_zero, positive


@dataclass(frozen=True)
class DataConfig:
    """Images and augmentation.

    Attributes:
      folder: Address of the images, see `flax_vae.images.open_images`; None for the photographs of the package.
      held_out: Name of the image that is evaluated and never trained on: a path inside the folder, or an index from 0
        for other addresses; None for `chelsea.jpg` of the photographs of the package, and for the last image elsewhere.
        With validation images, an image is held out only if it is named.
      crop_size: Side of the random square crops in pixels.
      shuffle_channels: Whether to permute red, green and blue at random, which multiplies the colours of a few
        photographs.
      resize: Length in pixels that the shorter side of each image is resized to first; None keeps the size.
      min_scale: Smallest scale of a crop: windows of up to 1 / min_scale times its area are cut and reduced to the
        crop; 1 cuts crops at the size of the image.  Nothing is enlarged, unlike torchvision's RandomResizedCrop.
      flip: Whether to flip crops horizontally with probability 1/2.
      bad_files: Treatment of images that are damaged or smaller than the crop: `refuse` stops with a list of them,
        `skip` replaces each by another image, the same one in every epoch, and reports it.
      max_bad_fraction: Largest fraction of all images that may be skipped; more of them stop the run.
      max_bad_count: Number of images that may be skipped whatever the fraction, up to half of all.

    Raises:
      ValueError: If a number is outside its range.
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
        if self.resize is not None:
            at_least(1, resize=self.resize)
            if self.resize < self.crop_size:
                raise ArgumentError(
                    f"resize={self.resize} must be at least crop_size={self.crop_size}",
                    field="resize",
                    value=self.resize,
                )
        if not 0 < self.min_scale <= 1:
            raise ArgumentError(
                f"min_scale={self.min_scale!r} must be greater than 0 and at most 1",
                field="min_scale",
                value=self.min_scale,
            )
        if not 0 <= self.max_bad_fraction < 1:
            raise ArgumentError(
                f"max_bad_fraction={self.max_bad_fraction!r} must be at least 0 and less than 1",
                field="max_bad_fraction",
                value=self.max_bad_fraction,
            )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with gradient clipping, and a schedule with linear warm-up.

    Attributes:
      learning_rate: Peak learning rate, reached after the warm-up.
      schedule: Shape after the warm-up: `cosine` falls to `final_fraction` of the peak, `constant` stays.
      final_fraction: Fraction of the peak at the end of the cosine.
      warmup_steps: Updates until the peak; at most half of the steps of the run.
      b1: Decay rate of the first moment.
      b2: Decay rate of the second moment.
      eps: Number that is added to the root of the second moment.
      weight_decay: Decoupled weight decay, of convolution and dense kernels only.
      clip_norm: Largest global norm of the gradient; longer gradients are scaled down to it.
      accumulate: Number of parts of a batch that are computed one after another, which saves memory.  Without a
        discriminator, the update equals that of the whole batch.  With one, its batch norms use each part alone, in
        the losses and in the running statistics; everything else equals the whole batch, for which an adaptive weight
        costs a second forward pass.
      ema_decay: Decay rate of the moving average of the weights, which is then evaluated and exported; 0 keeps none.
      part_learning_rates: Peak learning rates of parts of the model, `decoder.conv_out=1e-5,decoder.mid=2e-5`: patterns
        as in `trainable`, of which the last that matches a weight counts.  Schedule and weight decay are in
        proportion.  None trains all at `learning_rate`.

    Raises:
      ValueError: If a number is outside its range.
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
    part_learning_rates: str | None = None

    def __post_init__(self):
        check_types(self)
        at_least(0, warmup_steps=self.warmup_steps)
        at_least(1, accumulate=self.accumulate)
        positive(learning_rate=self.learning_rate, eps=self.eps, clip_norm=self.clip_norm)
        from_zero(weight_decay=self.weight_decay)
        below_one(b1=self.b1, b2=self.b2, ema_decay=self.ema_decay)
        if self.part_learning_rates is not None:
            parse_rates(self.part_learning_rates)
        if not 0 <= self.final_fraction <= 1:
            raise ArgumentError(
                f"final_fraction={self.final_fraction!r} must be between 0 and 1",
                field="final_fraction",
                value=self.final_fraction,
            )


@dataclass(frozen=True)
class LossConfig:
    """Loss of the autoencoder; `flax_vae.train.losses.reconstruction` has the formulas.

    Attributes:
      distance: Distance between an image and its reconstruction, value by value.
      reduction: Reduction of the loss: `mean` divides every term by the number of values in an image; `sum`, LDM's
        convention, sums over an image and averages over the batch.  The weights below have one meaning in both.
      kl_weight: Weight of the KL divergence (LDM: 1e-6).
      free_bits: Divergence in nats of each latent value that costs nothing.
      sample: Whether to decode a sample of the posterior instead of the mean.
      lpips_weight: Weight of LPIPS, which is added to the distance of every value; 0 leaves it out.
      lpips_net: Network of LPIPS: VGG16 for training, or AlexNet, which is faster.
      lpips_weights: File with the weights of LPIPS; None for those of the `lpips` extra.
      learn_logvar: Whether to learn the logarithm of the reconstruction's variance: distances are divided by the
        variance, and its logarithm is added.
      logvar: Logarithm of the variance, or its initial value if learned.
      ssim_weight: Weight of 1 - SSIM, which is added to the distance of every value; 0 leaves it out.
      features_weight: Weight of the distance in the features of a network of your own, which is added too; the
        network is an argument of `flax_vae.train.loop.train`, so no command can use it.

    Raises:
      ValueError: If a weight is negative, or a name unknown.
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
    ssim_weight: float = 0.0
    features_weight: float = 0.0

    def __post_init__(self):
        check_types(self)
        names = ("kl_weight", "free_bits", "lpips_weight", "ssim_weight", "features_weight")
        from_zero(**{name: getattr(self, name) for name in names})
        finite(logvar=self.logvar)


@dataclass(frozen=True)
class LatentConfig:
    """Regularisers of the latents, off by default; `flax_vae.train.losses.latents` has the formulas.

    Attributes:
      equivariance: Probability of an update that reduces the latents of its batch to 1/4, 1/2 or 3/4 of their sides,
        turns them by none to three quarters, and compares what is decoded with the images that were changed alike
        (EQ-VAE: 0.5).  Its code has this as `p_prior`, which its README explains as the probability of an ordinary
        update.  Each size is a program of its own, compiled when it first occurs.
      equivariance_weight: Weight of the loss of the reduced latents when it is added to that of the whole ones; None
        replaces it, as EQ-VAE does, which costs less time and more fidelity.
      noise: Largest standard deviation of the noise that is added to scaled latents before they are decoded; that of
        each image is drawn between 0 and this (RAE: 0.8).
      variance_weight: Weight of variance expansion, the mean of 1 / (variance + 0.01) over the posteriors.

    Raises:
      ValueError: If a number is outside its range.
    """

    equivariance: float = 0.0
    equivariance_weight: float | None = None
    noise: float = 0.0
    variance_weight: float = 0.0

    def __post_init__(self):
        check_types(self)
        from_zero(noise=self.noise, variance_weight=self.variance_weight)
        finite(equivariance=self.equivariance)
        if not 0 <= self.equivariance <= 1:
            raise ArgumentError(
                f"equivariance={self.equivariance!r} must be between 0 and 1",
                field="equivariance",
                value=self.equivariance,
            )
        if self.equivariance_weight is not None:
            positive(equivariance_weight=self.equivariance_weight)
            if not self.equivariance:
                raise ArgumentError(
                    f"equivariance_weight={self.equivariance_weight} has no effect with equivariance=0; set "
                    "latents.equivariance to the fraction of the updates that have this loss, such as 1",
                    field="equivariance_weight",
                    value=self.equivariance_weight,
                )


@dataclass(frozen=True)
class GanConfig:
    """Discriminator and adversarial loss; `flax_vae.train.losses.adversarial` has the formulas.

    Attributes:
      weight: Weight of the adversarial loss of the autoencoder (LDM: 0.5); 0 leaves it out.
      start: Updates before the discriminator is trained and used (LDM: 50,001); until then it costs nothing.
      loss: Loss of the autoencoder and the discriminator.
      adaptive: Whether to scale the weight so that the loss has the same gradient norm at the decoder's last kernel as
        the other losses.
      r1: Weight gamma of the R1 penalty: gamma / 2 times the squared gradient norm at real images.
      features: Channels of the first layer of the discriminator.
      layers: Strided convolutions of the discriminator, including the first.
      learning_rate: Peak learning rate of the discriminator's Adam; the schedule is that of the autoencoder.
      b1: Decay rate of the first moment.
      b2: Decay rate of the second moment.

    Raises:
      ValueError: If a number is outside its range.
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
        positive(learning_rate=self.learning_rate)
        below_one(b1=self.b1, b2=self.b2)
        _ = self.discriminator  # checks the other fields

    @property
    def discriminator(self) -> DiscriminatorParams:
        """Architecture of the discriminator."""
        return DiscriminatorParams(features=self.features, layers=self.layers)


@dataclass(frozen=True)
class TimeConfig:
    """Times of a model that is conditioned on time; each example gets a random one.

    A model with `time_embedding="linear"` is given the sines and cosines of the time.

    Attributes:
      sampler: Distribution of times: `uniform` between `low` and `high`, or `logit_normal` on that range.
      low: Smallest time.
      high: Largest time; the scale of the embedding ends at about 1000.
      evaluate_at: Time at which held-out images are reconstructed.

    Raises:
      ValueError: If the range is empty.
    """

    sampler: Literal["uniform", "logit_normal"] = "uniform"
    low: float = 0.0
    high: float = 1000.0
    evaluate_at: float = 0.0

    def __post_init__(self):
        check_types(self)
        finite(low=self.low, high=self.high, evaluate_at=self.evaluate_at)
        if not self.low < self.high:
            raise ArgumentError(f"low={self.low!r} must be less than high={self.high!r}", field="low", value=self.low)


@dataclass(frozen=True)
class ValidationConfig:
    """Images that judge the run, and what follows from their scores.

    Attributes:
      data: Address of the images, see `flax_vae.images.open_images`; None evaluates one photograph that is held out
        from training.
      images: Number of images, the first ones; None for all.
      resize: Length in pixels that the shorter side of each image is resized to first, see
        `flax_vae.images.resize_image`; None keeps the size.
      crop: Part of a resized image: the square in its `center`, or all of it (`none`).
      batch_size: Largest number of images of one size that a device computes together.
      lpips: Network of LPIPS: `alex` as in papers, `vgg`, or `none`.  The held-out photograph is measured by the
        network of the loss, if LPIPS is part of it.
      lpips_weights: File with the weights of LPIPS; None for those of the `lpips` extra.
      features: Function `module:function` from 8-bit images (b, h, w, 3) to features (b, d), for rFID; None measures
        none.
      raw: Whether to evaluate the raw weights too, beside their moving average.
      metric: Score that decides which checkpoint is the best, which is kept.
      patience: Successive evaluations without a better score after which the run ends; None never ends it.

    Raises:
      ValueError: If a number is out of range, or a setting lacks another that it needs.
    """

    data: str | None = None
    images: int | None = None
    resize: int | None = None
    crop: Literal["center", "none"] = "center"
    batch_size: int = 8
    lpips: Literal["alex", "vgg", "none"] = "alex"
    lpips_weights: str | None = None
    features: str | None = None
    raw: bool = False
    metric: Literal["psnr", "ssim", "lpips", "rfid"] = "psnr"
    patience: int | None = None

    def __post_init__(self):
        check_types(self)
        numbers = {name: getattr(self, name) for name in ("images", "resize", "batch_size", "patience")}
        at_least(1, **{name: value for name, value in numbers.items() if value is not None})
        for name in ("images", "resize", "features"):
            if self.data is None and getattr(self, name) is not None:
                raise ArgumentError(
                    f"validation.{name}={getattr(self, name)!r} needs images; name them with validation.data "
                    "(--validation)",
                    field=name,
                    value=getattr(self, name),
                )
        if self.metric == "rfid" and self.features is None:
            raise ArgumentError(
                "validation.metric='rfid' needs a feature network; name it with validation.features", field="metric"
            )
        if self.metric == "lpips" and self.data is not None and self.lpips == "none":
            raise ArgumentError("validation.metric='lpips' needs validation.lpips 'alex' or 'vgg'", field="metric")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run.

    Attributes:
      model: Architecture.
      data: Images; see `DataConfig`.
      optim: Optimizer; see `OptimConfig`.
      loss: Loss; see `LossConfig`.
      latents: Regularisers of the latents; see `LatentConfig`.
      gan: Discriminator; see `GanConfig`.
      time: Times; see `TimeConfig`.
      validation: Evaluation during the run; see `ValidationConfig`.
      start_from: File or folder with the initial weights, or a model on the Hugging Face hub,
        `hf:org/name[/folder or file][@revision]`, as for `flax_vae.from_pretrained`; the state of Adam in a PyTorch
        checkpoint is used too.  None for random weights.
      teacher: File or folder with a model, addressed like `start_from`, whose latents a new decoder learns to decode.
        The model that is trained has the teacher's encoder, bit for bit, and a random decoder, whose widths may be its
        own (`model.decoder_widths`).
      raw_weights: Whether to take the raw weights of a training checkpoint instead of their moving average.
      graft: Whether to add as zeros what the architecture has and the initial weights lack (attention, time), which
        keeps the function; see `flax_vae.convert.table.grafting`.
      trainable: Weights to train; all others stay bit for bit what they are.  `all`; `decoder`, which keeps the latents
        too; or patterns over the names in PyTorch, separated by commas: `decoder.up.0,decoder.conv_out`.  A pattern
        selects a weight, or all weights of a module, and `*` stands for any characters:
        `decoder.*.conv2.weight`.  `flax-vae-convert table` prints the names.
      batch_size: Crops per update, over all devices together.
      steps: Updates of the whole run.
      seed: Seed of initial weights, crops and noise.
      identity_init: Whether to change the random initial weights so that a small model learns faster; see
        `flax_vae.train.identity_init`.
      parallel: Parallelism over several devices; both compute the same.
      zero: Whether to shard the states of the optimizers and the moving average over the devices; needs `mesh`.
      devices_per_image: Devices that share the rows of each image, if one is too large for a device; needs `mesh`.
      dtype: Computation dtype.  Parameters, statistics of normalisations and optimizer states are float32.
      remat: Activations that the backward pass computes again, which saves memory and costs time; see
        `flax_vae.AutoEncoder`.
      log_every: Updates between two lines of `metrics.jsonl`.
      eval_every: Updates between two evaluations on the validation images, or on the held-out one.
      save_every: Updates between two checkpoints.
      keep: Newest checkpoints to keep, in addition to the best one and the newest that a later finite update proves.
      max_skipped: Successive updates that may be skipped because the loss or gradient is not finite; more stop the run.
      tensorboard: Whether to also write curves and images to `tensorboard/` in the run directory; needs the extra
        of that name.
      wandb: Whether to also send curves and images to Weights & Biases; needs the extra of that name.  A resumed run
        goes on in the same run there; WANDB_PROJECT, WANDB_MODE=offline and the like are its own variables.

    Raises:
      ValueError: If a number is out of range, or two settings contradict each other.
    """

    model: Architecture
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    latents: LatentConfig = field(default_factory=LatentConfig)
    gan: GanConfig = field(default_factory=GanConfig)
    time: TimeConfig = field(default_factory=TimeConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    start_from: str | None = None
    teacher: str | None = None
    raw_weights: bool = False
    graft: bool = False
    trainable: str = "all"
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
    wandb: bool = False

    def __post_init__(self):
        check_types(self)
        at_least(0, most=2**63 - 1, seed=self.seed)
        at_least(0, max_skipped=self.max_skipped)
        names = ("batch_size", "steps", "devices_per_image", "log_every", "eval_every", "save_every", "keep")
        at_least(1, **{name: getattr(self, name) for name in names})
        self._check_model()
        self._check_together()
        self._check_parts()

    @property
    def reduced_sizes(self) -> tuple[int, ...]:
        """Sides of the raw latents that are reduced, one for each scale; none without equivariance."""
        if not self.latents.equivariance:
            return ()
        length = self.data.crop_size // self.model.factor * self.model.patch
        return tuple(reduced_size(length, scale, self.model) for scale in SCALES)

    @property
    def largest_reduced(self) -> int | None:
        """Side of the reduced latents in the update that needs most memory; None for an update that reduces nothing."""
        return None if self.latents.equivariance_weight is None else max(self.reduced_sizes)

    @property
    def smallest_image(self) -> int:
        """Side in pixels of the smallest reconstruction in the losses: the crop's, or that of the smallest latents."""
        return min(
            (self.data.crop_size, *(size * self.model.factor // self.model.patch for size in self.reduced_sizes))
        )

    def _check_model(self) -> None:
        if self.data.crop_size % self.model.factor:
            raise ArgumentError(
                f"crop_size={self.data.crop_size} must be a multiple of {self.model.factor}, the factor of the model",
                field="crop_size",
                value=self.data.crop_size,
            )
        if self.data.crop_size // self.model.factor % self.devices_per_image:
            raise ArgumentError(
                f"crop_size={self.data.crop_size} makes latents of {self.data.crop_size // self.model.factor} rows, "
                f"which devices_per_image={self.devices_per_image} cannot share evenly; use a multiple of "
                f"{self.model.factor * self.devices_per_image}",
                field="crop_size",
                value=self.data.crop_size,
            )
        if self.model.in_channels != 3 or self.model.out_ch != 3:
            raise ArgumentError(
                f"in_channels={self.model.in_channels} and out_ch={self.model.out_ch} must both be 3, because "
                "images are read as RGB",
                field="in_channels",
                value=self.model.in_channels,
            )
        if self.model.time_emb_dim is not None and self.model.time_emb_dim % 2:
            raise ArgumentError(
                f"time_emb_dim={self.model.time_emb_dim} must be even, for the sines and cosines of the time",
                field="time_emb_dim",
                value=self.model.time_emb_dim,
            )

        if not self.model.has_posterior:
            self._check_tiny()

    def _check_tiny(self) -> None:
        if self.trainable == "all" or changes_latents(self.trained):
            raise ArgumentError(
                f"trainable={self.trainable!r} trains the encoder of a tiny autoencoder, whose latents are those of "
                "the model that it imitates; set trainable='decoder'",
                field="trainable",
                value=self.trainable,
            )
        for name, value, without in (
            ("loss.sample", self.loss.sample, False),
            ("latents.variance_weight", self.latents.variance_weight, 0),
            ("loss.kl_weight", self.loss.kl_weight, 0),
            ("identity_init", self.identity_init, False),
        ):
            if value != without:
                raise ArgumentError(
                    f"{name}={value!r} concerns the posterior or the norms of an autoencoder, and a tiny one has "
                    f"neither; set {name}={without}",
                    field=name,
                    value=value,
                )

    def _check_together(self) -> None:
        if self.validation.raw and not self.optim.ema_decay:
            raise ArgumentError("validation.raw=True needs a moving average to compare with; set optim.ema_decay")
        if self.validation.metric == "lpips" and self.validation.data is None and not self.loss.lpips_weight:
            raise ArgumentError(
                "validation.metric='lpips' needs validation images (--validation), or LPIPS in the loss",
                field="metric",
            )
        if self.zero and self.parallel != "mesh":
            raise ArgumentError(f"zero=True needs parallel='mesh', not {self.parallel!r}")
        if self.devices_per_image > 1 and self.parallel != "mesh":
            raise ArgumentError(
                f"devices_per_image={self.devices_per_image} needs parallel='mesh', not {self.parallel!r}",
                field="devices_per_image",
                value=self.devices_per_image,
            )
        if self.teacher is not None:
            self._check_teacher()
        if self.raw_weights and self.start_from is None and self.teacher is None:
            raise ArgumentError("raw_weights=True applies to a checkpoint; pass it as start_from or teacher")
        if self.graft and self.start_from is None:
            raise ArgumentError("graft=True adds to given weights; pass them as start_from")
        if self.identity_init and self.start_from is not None:
            raise ArgumentError(
                f"identity_init=True changes random weights, but start_from={self.start_from!r} was given; use one"
            )
        if self.latents.variance_weight and not changes_latents(self.trained):
            raise ArgumentError(
                f"latents.variance_weight={self.latents.variance_weight!r} concerns the encoder, which "
                f"trainable={self.trainable!r} leaves as it is; expected 0",
                field="latents.variance_weight",
                value=self.latents.variance_weight,
            )
        if self.trainable != "all" and self.start_from is None and self.teacher is None:
            raise ArgumentError(
                f"trainable={self.trainable!r} keeps the other weights; pass them as start_from or teacher"
            )
        if self.gan.weight:
            self.require_size(self.gan.discriminator.smallest, f"gan.layers={self.gan.layers}", "fewer layers")
        if self.batch_size % self.optim.accumulate:
            raise ArgumentError(
                f"batch_size={self.batch_size} must be a multiple of accumulate={self.optim.accumulate}",
                field="batch_size",
                value=self.batch_size,
            )

    def _check_parts(self) -> None:
        if self.trainable not in ("all", "decoder"):  # which every model has
            _ = self.trained
        if self.optim.part_learning_rates is None:
            return
        for pattern, _ in parse_rates(self.optim.part_learning_rates):
            if not part_rates(self.model, f"{pattern}=1").keys() & self.trained:
                raise ArgumentError(
                    f"part_learning_rates: {pattern!r} has no weight that is trained; add it to "
                    f"trainable={self.trainable!r}, or leave it out",
                    field="part_learning_rates",
                    value=pattern,
                )

    @property
    def trained(self) -> frozenset[str]:
        """Flax paths of the weights that are trained, such as `decoder/conv_out/kernel`."""
        return trained_paths(self.model, self.trainable)

    @property
    def rate_factors(self) -> dict[str, float]:
        """Learning rate of each weight that has its own, relative to `optim.learning_rate`, by its Flax path."""
        rates = self.optim.part_learning_rates
        own = {} if rates is None else part_rates(self.model, rates)
        return {path: rate / self.optim.learning_rate for path, rate in own.items()}

    def _check_teacher(self) -> None:
        if self.start_from is not None:
            raise ArgumentError(
                f"teacher={self.teacher!r} gives the encoder of a new decoder, and start_from={self.start_from!r} a "
                "whole model; use one of them",
                field="teacher",
                value=self.teacher,
            )
        if self.trainable != "decoder":
            raise ArgumentError(
                f"teacher={self.teacher!r} gives an encoder that stays as it is, but trainable={self.trainable!r} "
                "trains it; set trainable='decoder'",
                field="trainable",
                value=self.trainable,
            )

    def require_size(self, least: int, what: str, remedy: str) -> None:
        """Checks that a loss can take the smallest reconstruction.

        Args:
          least: Least side in pixels.
          what: Setting that needs it.
          remedy: What to use, besides larger crops.

        Raises:
          ValueError: If it is smaller.
        """
        if self.smallest_image >= least:
            return
        size, also = f"crop_size={self.data.crop_size}", ""
        if self.reduced_sizes:
            size += f", reduced to {self.smallest_image} by latents.equivariance={self.latents.equivariance},"
            also = "no equivariance, "
        raise ArgumentError(
            f"{size} is too small for {what}, which needs {least} pixels; use {also}{remedy} or larger crops",
            field="crop_size",
            value=self.data.crop_size,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields as JSON-able values, in order."""
        parts = {name: vars(getattr(self, name)) for name in _PARTS}
        return {**vars(self), **{name: dict(part) for name, part in parts.items()}, "model": self.model.to_dict()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TrainConfig":
        """Returns the settings of a dictionary, as from `to_dict`.

        Args:
          fields: Settings by name, nested.

        Raises:
          ValueError: If a field is unknown (with the nearest known name), missing, or out of range.
        """
        fields = rename_settings(fields)
        _refuse_unknown(cls, fields)
        if "model" not in fields:
            raise ArgumentError("the configuration lacks model, the architecture")
        parts: dict[str, Any] = {"model": architecture_from_dict(fields["model"])}
        for name, part in _PARTS.items():
            _refuse_unknown(part, fields.get(name, {}))
            parts[name] = part(**fields.get(name, {}))
        return cls(**{**fields, **parts})


_PARTS = {
    "data": DataConfig,
    "optim": OptimConfig,
    "loss": LossConfig,
    "latents": LatentConfig,
    "gan": GanConfig,
    "time": TimeConfig,
    "validation": ValidationConfig,
}


# Names that settings had in earlier versions; files written then are still read.
RENAMED = {"train": "trainable", "rows": "devices_per_image", "transparent_start": "identity_init"}


def rename_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with the names of earlier versions replaced by those of today.

    Args:
      fields: Nested settings.

    Raises:
      ValueError: If a setting is given under both names.
    """
    for old, new in RENAMED.items():
        if old in fields and new in fields:
            raise ArgumentError(f"{old} is the earlier name of {new}; pass only {new}")
    return {RENAMED.get(name, name): value for name, value in fields.items()}


def setting_types(*sections: type) -> dict[str, Any]:
    """Returns the type of each field of a section, or of several that stand for each other.

    A field that is a section itself has a tuple: the dataclasses that it may be.

    Args:
      sections: Dataclasses of settings.
    """
    types: dict[str, Any] = {}
    for section in sections:
        hints = get_type_hints(section)
        for name in (one.name for one in dataclasses.fields(section) if one.name not in types):
            members = get_args(hints[name]) or (hints[name],)
            types[name] = members if all(map(dataclasses.is_dataclass, members)) else hints[name]
    return types


def config_differences(before: TrainConfig, after: TrainConfig) -> list[str]:
    """Returns `name: before -> after` for each setting that differs, with dotted names.

    Args:
      before: Settings of before.
      after: Settings of now.
    """
    old, new = (flatten_config(config.to_dict() | {"model": vars(config.model)}) for config in (before, after))
    names = dict.fromkeys([*new, *old])  # those of a model of another kind differ
    return [f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names if old.get(name) != new.get(name)]


def flatten_config(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested fields under dotted names.

    Args:
      fields: Nested settings.
      prefix: Dotted name that all settings get in front.
    """
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= flatten_config(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _refuse_unknown(cls: type, fields: Mapping[str, Any]) -> None:
    known = [known.name for known in dataclasses.fields(cls)]
    for name in fields:
        if name not in known:
            raise ArgumentError(f"unknown field {name!r} of {cls.__name__}; {suggest(name, known)}", field=name)
