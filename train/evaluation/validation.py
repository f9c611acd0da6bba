"""Scores the model of a run while it trains, as `flax-vae-train eval` scores the finished one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from flax_vae.convert.console import printable
from flax_vae.convert.errors import FlaxVaeError
from flax_vae.images import Comparison, ImageScores, ImageSource
from flax_vae.loading import make_model
from flax_vae.numerics import Numerics
from flax_vae.train.config import TrainConfig, ValidationConfig
from flax_vae.train.devices import Parallel, gather_float64
from flax_vae.train.errors import RunError
from flax_vae.train.evaluation.fid import FeatureExtractor, FrechetMeter, load_extractor
from flax_vae.train.evaluation.latent_change import LatentChange, LatentChangeMeter
from flax_vae.train.evaluation.whole_images import (
    Evaluation,
    image_sizes,
    mean_scores,
    of_all_processes,
    perceptual_distance,
)
from flax_vae.train.losses import load_lpips_weights

_SHOWN = 8  # images in a picture
MORE_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False, "rfid": False}
# The loss has a term of the name `lpips`, which is computed on training crops.
LOGGED_AS = {"lpips": "held_out_lpips"}


@dataclass(frozen=True)
class Validated:
    """Result of an evaluation during a run.

    Attributes:
      images: Scores of all images in order, equal in all processes.
      rfid: Fréchet distance of features, or None.
      shown: Some images with their reconstructions, the first of this process.
      change: Change of the latents since the start, equal in all processes; None if it was not measured.
    """

    images: list[ImageScores]
    rfid: float | None
    shown: list[Comparison]
    change: LatentChange | None = None

    @property
    def scores(self) -> dict[str, float]:
        """Mean of each score that was measured, and `rfid`."""
        scores = {**mean_scores(self.images), "rfid": self.rfid}
        return {name: score for name, score in scores.items() if score is not None}


class Validation:
    """Evaluates parameters on the validation images of a run, or on the held-out one, on all devices of all processes.

    Scores of images are those of `Evaluation`: on devices of one kind equal to the last bit for any number of devices
    and processes, and so are their means.  rFID is that of one process up to the rounding of float64 sums.

    Attributes:
      sizes: Height and width of each image, by its number.
    """

    def __init__(
        self,
        config: TrainConfig,
        source: ImageSource,
        parallel: Parallel,
        loss_lpips: Mapping[str, Any] | None = None,
        start: Callable[[], Any] | None = None,
    ):
        """Reads the headers of the images, and compiles nothing yet.

        Args:
          config: Settings of the run.
          source: Images; see `flax_vae.train.data.validation_images`.
          parallel: Devices of the run.
          loss_lpips: Weights of LPIPS if it is part of the loss, which measures the held-out image then.
          start: Function that returns the starting model's parameters, with whose latents those of each evaluation are
            compared.  It is called at the first evaluation, and the parameters are not kept.

        Raises:
          DataError: If an image cannot be read.
          RunError: If weights of LPIPS cannot be loaded.
          TrainError: If the feature network does not exist.
        """
        settings = config.validation
        self._source, self.sizes = source, image_sizes(source)
        net, weights = config.loss.lpips_net, loss_lpips
        if settings.data is not None:
            net, weights = settings.lpips, _lpips_of(settings)
        self._extractor: FeatureExtractor | None = None
        if settings.features is not None:
            self._extractor = load_extractor(settings.features)
        self._evaluation = Evaluation(
            # float32, whatever the dtype of the run: the exported model is evaluated in it.
            make_model(config.model, Numerics(jnp.float32)),
            params={},
            batch_size=settings.batch_size,
            time=config.time.evaluate_at,
            perceptual=None if weights is None or net == "none" else perceptual_distance(dict(weights), net),
        )
        processes = jax.process_count()
        each = len(parallel.devices) // processes
        self._evaluation = replace(self._evaluation, devices=tuple(parallel.local_devices[:each]))
        self._start, self._start_lost = start, False
        self._start_means: _Means | None = None
        # Every round of batches has as many devices, in whichever process.
        self._rounds = self._evaluation.rounds(self.sizes, each)[jax.process_index() :: processes]

    @property
    def facts(self) -> dict[str, str]:
        """Names and sizes of the images, which must be equal in all processes; nothing for a run of one process."""
        if jax.process_count() == 1:
            return {}
        names = (printable(self._source.name(index)) for index in self.sizes)
        return {name: "{} x {}".format(*size) for name, size in zip(names, self.sizes.values(), strict=True)}

    def __call__(self, params: Any) -> Validated:
        """Evaluates parameters; a collective call of all processes, also to compare their latents with the start's.

        Args:
          params: Parameters on the devices of this process; see `Parallel.gather`.

        Returns:
          Scores of the images.

        Raises:
          NotFiniteError: In all processes, if a reconstruction holds NaN or infinite values.
          RunError: If another process failed.
          FlaxVaeError: If an image cannot be read, or the feature network is faulty.
        """
        meter = None if self._extractor is None else FrechetMeter(self._extractor)
        evaluation = replace(self._evaluation, params=params, frechet=meter)
        shown: list[Comparison] = []

        def look(comparison: Comparison) -> None:
            if len(shown) < _SHOWN:
                shown.append(comparison)

        scores: dict[int, ImageScores] = {}
        change = None
        failure: Exception | None = None
        with jax.transfer_guard("allow"):  # the training loop forbids implicit transfers
            try:
                if self._start is not None:
                    change = LatentChangeMeter(self._means_of_start(self._start))
                scores = evaluation.measure(self._source, self._rounds, look, change)
            except Exception as error:  # every failure must be reported to the other processes
                failure = error
            scores = _of_all_processes(scores, failure)
            if meter is not None and jax.process_count() > 1:
                meter.merge(gather_float64)
            moved = change and change.result(gather_float64 if jax.process_count() > 1 else None)
        rfid = None if meter is None else meter.distance()
        return Validated([scores[index] for index in sorted(scores)], rfid, shown, moved)

    def _means_of_start(self, start: Callable[[], Any]) -> "_Means | None":
        """Returns the latents of the starting model; None if it was moved or deleted, which does not end a run."""
        if self._start_means is None and not self._start_lost:
            means = _Means()
            try:
                replace(self._evaluation, params=start()).encode(self._source, self._rounds, means)
                self._start_means = means
            except RunError:
                self._start_lost = True
        return self._start_means


class _Means(list[Any]):
    """Means of posteriors, in the order in which they are added."""

    def add(self, mean: Any, logvar: Any) -> None:
        self.append(mean)


def _of_all_processes(scores: dict[int, ImageScores], failure: Exception | None) -> dict[int, ImageScores]:
    """Returns the scores of all processes; raises in all of them if one failed."""
    reports = of_all_processes([[index, *one] for index, one in scores.items()], failure)
    return {row[0]: ImageScores(*row[1:]) for report in reports for row in report}


def _lpips_of(settings: ValidationConfig) -> dict[str, Any] | None:
    if settings.lpips == "none":
        return None
    try:
        return load_lpips_weights(settings.lpips, settings.lpips_weights)
    except (FlaxVaeError, OSError) as error:
        raise RunError(f"{error}; or validate without LPIPS: --validation.lpips none") from error


@dataclass(frozen=True)
class BestScore:
    """The best score of a run so far; stored with every checkpoint, so that a resumed run continues to count.

    Attributes:
      value: Best score, or None before the first evaluation.
      step: Step of the best score.
      waited: Evaluations since then.
    """

    value: float | None = None
    step: int = 0
    waited: int = 0

    def after(self, step: int, score: float | None, metric: str) -> "BestScore":
        """Returns the best score after another evaluation.

        Args:
          step: Step of the evaluation.
          score: Score of the evaluation; None if a reconstruction was not finite.
          metric: Name of the score, which decides whether more is better.
        """
        if score is None or math.isnan(score):
            return replace(self, waited=self.waited + 1)
        better = self.value is None or (score > self.value if MORE_IS_BETTER[metric] else score < self.value)
        return BestScore(score, step) if better else replace(self, waited=self.waited + 1)

    def ended(self, patience: int | None) -> bool:
        """Returns whether the run ends, because `patience` evaluations did not improve the score.

        Args:
          patience: Number of evaluations; None never ends a run.
        """
        return patience is not None and self.waited >= patience

    def stored(self) -> dict[str, float]:
        """Returns the numbers to store in a checkpoint."""
        value = {} if self.value is None else {"best": self.value}
        return {**value, "best_step": float(self.step), "best_waited": float(self.waited)}

    @classmethod
    def restored(cls, numbers: Mapping[str, float]) -> "BestScore":
        """Returns the best score of a checkpoint; the inverse of `stored`.

        Args:
          numbers: Numbers that were saved with a checkpoint.
        """
        return cls(numbers.get("best"), int(numbers.get("best_step", 0)), int(numbers.get("best_waited", 0)))
