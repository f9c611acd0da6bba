"""Evaluates a model on images: reconstructs each of them whole, from the mode of its posterior, and measures it.

An evaluation compiles at most three programs for each of at most `flax_vae.train.evaluation.batches.MOST_SIZES` sizes:
encoder, decoder and LPIPS.  Images of other sizes are padded.  Images that do not fit into memory otherwise need the
programs of `decode_in_bands` too.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from flax_vae.autoencoder import Model
from flax_vae.convert.console import available_cpus, printable
from flax_vae.convert.errors import FlaxVaeError
from flax_vae.images import (
    Comparison,
    ImageScores,
    ImageSource,
    compare_images,
    padded_size,
    scan_images,
    to_float,
    to_uint8,
)
from flax_vae.inference import Reconstruction, encode_means, needs_bands, reconstruct
from flax_vae.train.devices import gather_float64, gather_values
from flax_vae.train.errors import DataError, NotFiniteError, RunError
from flax_vae.train.evaluation.batches import ImageBatch, plan_batches
from flax_vae.train.evaluation.components import PrincipalComponents
from flax_vae.train.evaluation.equivariance import central_equivariance, equivariance_side
from flax_vae.train.evaluation.fid import FrechetMeter
from flax_vae.train.evaluation.statistics import PosteriorSink, PosteriorStats, PosteriorSummary
from flax_vae.train.losses import lpips, smallest_side, stages_of

SCORES = ("psnr", "ssim", "lpips")
_AXIS = "images"

Image = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Report:
    """Result of an evaluation.

    Attributes:
      images: Scores of each image, in the order of the source.
      latents: Statistics of the latents, those of the padding to the model's factor included.
      rfid: Fréchet distance between the features of the reconstructions and of the originals; None if it was not
        asked for or there is only one image.
      equivariance: Equivariance errors; None if they were not asked for, or the images are too small.
      components: Principal components of the latents.
    """

    images: list[ImageScores]
    latents: PosteriorSummary
    rfid: float | None
    equivariance: "Equivariance | None" = None
    components: PrincipalComponents | None = None

    def mean(self) -> dict[str, float | None]:
        """Returns the mean of each score; see `mean_scores`."""
        return mean_scores(self.images)


class Equivariance(NamedTuple):
    """Equivariance errors of some images; see `equivariance_psnr`.

    Attributes:
      psnr: Error of each of the first images in decibels.
      side: Side of the square in the centre of each image that was measured, in pixels.
    """

    psnr: list[float]
    side: int

    def mean(self) -> float:
        """Returns the mean over the images, in decibels."""
        return sum(self.psnr) / len(self.psnr)


def mean_scores(images: Sequence[ImageScores]) -> dict[str, float | None]:
    """Returns the mean of each score over the images that have it, or None; PSNR is averaged in decibels."""
    scores = {name: [getattr(image, name) for image in images] for name in SCORES}
    known = {name: [value for value in values if value is not None] for name, values in scores.items()}
    return {name: sum(values) / len(values) if values else None for name, values in known.items()}


class PerceptualDistance(NamedTuple):
    """A perceptual distance.

    Attributes:
      distance: Function of two batches of images in [-1, 1], of the height and width of the part of each pair that is
        compared, and of a mesh that divides the pairs; returns one number per pair.
      smallest_side: Smallest height and width of the images, in pixels.
    """

    distance: Callable[
        [Float[np.ndarray, "b h w 3"], Float[np.ndarray, "b h w 3"], Int[np.ndarray, "b 2"], Mesh], Float[Array, " b"]
    ]
    smallest_side: int


def perceptual_distance(weights: dict[str, Any], net: Literal["vgg", "alex"]) -> PerceptualDistance:
    """Returns LPIPS, compiled once for images padded to equal size.

    Args:
      weights: Weights; see `flax_vae.train.losses.load_lpips_weights`.
      net: Network that the weights belong to.
    """
    placed: dict[Mesh, Any] = {}

    def distance(a: Any, b: Any, sizes: Any, mesh: Mesh) -> Float[Array, " b"]:
        if mesh not in placed:
            placed[mesh] = jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))
        pairs = jax.device_put((a, b, sizes), NamedSharding(mesh, PartitionSpec(_AXIS)))
        return _lpips(net, mesh, placed[mesh], *pairs)

    return PerceptualDistance(distance, smallest_side(stages_of(net)))


@jax.jit(static_argnums=(0, 1))
def _lpips(net: Literal["vgg", "alex"], mesh: Mesh, weights: Any, a: Array, b: Array, sizes: Array) -> Array:
    def each(weights: Any, a: Array, b: Array, sizes: Array) -> Array:
        return lpips(weights, a, b, net=net, sizes=sizes)

    pairs = PartitionSpec(_AXIS)
    specs = (PartitionSpec(), pairs, pairs, pairs)
    return jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=pairs)(weights, a, b, sizes)


LatentVisitor = Callable[[int, Image, Float[np.ndarray, "H W z"]], None]

_Posterior = tuple[Float[np.ndarray, "1 H W z"], Float[np.ndarray, "1 H W z"] | None]

Round = tuple[ImageBatch, ...]  # batches of one size that are computed at the same time, each on a device of its own


class _Made(NamedTuple):
    """Reconstructions of a batch in 8 bits, the distances from the originals, and the posteriors."""

    images: list[Image]
    distances: list[float | None]
    mean: Float[np.ndarray, "b H W z"]
    logvar: Float[np.ndarray, "b H W z"] | None


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of one model on the devices of this process, or of several processes that JAX has joined.

    Batches do not depend on the number of devices, and each is computed on one device as it is computed there alone.
    PSNR and SSIM are those of 8-bit images, in float64, of each image alone.  On devices of one kind the scores are
    therefore equal to the last bit, however many there are, and so are the statistics of the latents in one process.
    Several processes divide the images; statistics and rFID then agree up to the rounding of float64 sums.

    Attributes:
      model: Autoencoder.
      params: Parameters of the autoencoder, in host memory or on devices of this process.
      batch_size: Largest number of images of one padded size that a device computes together.
      time: Time for a model that is conditioned on one.
      in_bands: Whether to decode in bounded memory, which is slower; see `flax_vae.decode_in_bands`.  None decides by
        the size of the images.
      perceptual: Distance for LPIPS; None measures no LPIPS.
      frechet: Meter for rFID; None measures no rFID.
      equivariance: Number of images, the first ones, whose equivariance error is measured.
      devices: Devices of this process that compute; None means the first one.
    """

    model: Model
    params: Any
    batch_size: int = 1
    time: float = 0.0
    in_bands: bool | None = None
    perceptual: PerceptualDistance | None = None
    frechet: FrechetMeter | None = None
    equivariance: int = 0
    devices: tuple[Any, ...] | None = None

    def __call__(
        self,
        source: ImageSource,
        count: int,
        look: Callable[[Comparison], None] = lambda _: None,
        look_at_latents: LatentVisitor = lambda *_: None,
    ) -> Report:
        """Measures the first `count` images; a collective call of all processes.

        Args:
          source: Source of the images, equal in all processes.
          count: Number of images.
          look: Function that is called with each image of this process and its reconstruction; these are not kept.
          look_at_latents: Function that is called with the number of each image of this process, the image and the mean
            of its posterior; these are not kept.

        Returns:
          The results for the images of all processes.

        Raises:
          DataError: If the source is empty, or an image cannot be read.
          NotFiniteError: If a reconstruction holds NaN or infinite values.
          RunError: If another process failed.
          TrainError: If the feature extractor is faulty, or the latents are all equal or not finite.
        """
        process, processes = jax.process_index(), jax.process_count()
        sizes = image_sizes(source, count)
        rounds = self.rounds(sizes, 1 if self.devices is None else len(self.devices))[process::processes]
        latents = PosteriorStats(self.model.params.z_channels)
        first = sorted(sizes)[: self.equivariance]
        side = equivariance_side(self.model.params, [sizes[index] for index in first]) if first else None
        own: list[Any] = [[], []]
        failure: Exception | None = None
        try:
            scores = self.measure(source, rounds, look, latents, look_at_latents)
            own[0] = [[index, *one] for index, one in scores.items()]
            if side is not None:
                own[1] = self._equivariance(source, first[process::processes], side)
        except Exception as error:  # every failure must be reported to the other processes
            failure = error
        reports = of_all_processes(own, failure)
        if processes > 1:
            latents = latents.merged(gather_float64)
            if self.frechet is not None:
                self.frechet.merge(gather_float64)
        scores = {row[0]: ImageScores(*row[1:]) for report, _ in reports for row in report}
        errors = sorted((index, error) for _, report in reports for index, error in report)
        return Report(
            [scores[index] for index in sorted(scores)],
            latents.result(),
            None if self.frechet is None else self.frechet.distance(),
            None if side is None else Equivariance([error for _, error in errors], side),
            PrincipalComponents.of(latents.means),
        )

    def _equivariance(self, source: ImageSource, indices: Sequence[int], side: int) -> list[tuple[int, float]]:
        """Returns numbers and equivariance errors of images."""
        params = jax.device_put(self.params, self.devices[0] if self.devices else jax.local_devices()[0])
        errors = central_equivariance(self.model, params, source, indices, side, self._time)
        return list(zip(indices, errors, strict=True))

    def rounds(self, sizes: dict[int, tuple[int, int]], devices: int) -> list[Round]:
        """Divides images into rounds.

        Args:
          sizes: Height and width of each image, by its number.
          devices: Number of devices of a process.

        Returns:
          Batches of each round, one for each device at most.
        """
        rounds = []
        batches = plan_batches(sizes, self.batch_size, self.model.params.factor)
        for _, group in groupby(batches, key=lambda batch: (batch.height, batch.width)):
            equal = tuple(group)
            each = 1 if self._in_bands(equal[0]) else devices
            rounds += [equal[first : first + each] for first in range(0, len(equal), each)]
        return rounds

    def measure(
        self,
        source: ImageSource,
        rounds: Sequence[Round],
        look: Callable[[Comparison], None] = lambda _: None,
        latents: PosteriorSink | None = None,
        look_at_latents: LatentVisitor = lambda *_: None,
    ) -> dict[int, ImageScores]:
        """Measures the images of some rounds; adds them to `frechet`, if there is one.

        Args:
          source: Source of the images.
          rounds: Result of `rounds`, or a part of it.
          look: Function that is called with each image and its reconstruction.
          latents: Statistics or another sink, which is given the posteriors.
          look_at_latents: Function that is called with number, image and mean of the posterior, if `latents` are given.

        Returns:
          Scores of each image, by its number.

        Raises:
          DataError: If an image cannot be read.
          NotFiniteError: If a reconstruction holds NaN or infinite values.
          TrainError: If the feature extractor is faulty.
        """
        params = self._placed()
        scores: dict[int, ImageScores] = {}
        with ThreadPoolExecutor(available_cpus(), thread_name_prefix="evaluate") as threads:
            for batches, originals in _read_ahead(threads, source, rounds):
                for batch, made in zip(batches, self._reconstruct(source, params, batches, originals), strict=True):
                    shown = [originals[index] for index in batch.indices]
                    names = [printable(source.name(index)) for index in batch.indices]
                    comparisons = list(threads.map(compare_images, names, shown, made.images, made.distances))
                    if latents is not None:
                        posteriors = list(self._posteriors(shown, made.mean, made.logvar))
                        for index, image, (mean, logvar) in zip(batch.indices, shown, posteriors, strict=True):
                            latents.add(mean, logvar)
                            look_at_latents(index, image, mean[0])
                    if self.frechet is not None:
                        _add_features(self.frechet, comparisons)
                    for index, comparison in zip(batch.indices, comparisons, strict=True):
                        scores[index] = comparison.scores
                        look(comparison)
        return scores

    def encode(self, source: ImageSource, rounds: Sequence[Round], latents: PosteriorSink) -> None:
        """Encodes the images of some rounds without decoding them.

        Args:
          source: Source of the images.
          rounds: Result of `rounds`, or a part of it.
          latents: Sink that is given the means of the posteriors, in the order of `measure`.

        Raises:
          DataError: If an image cannot be read.
        """
        params = self._placed()
        with ThreadPoolExecutor(available_cpus(), thread_name_prefix="evaluate") as threads:
            for batches, originals in _read_ahead(threads, source, rounds):
                mesh, slots, images = self._stacked(params, batches, originals)
                means = encode_means(self.model, params.on(mesh), images, self._time, mesh=mesh)
                for batch, which in _shares(batches, len(slots)):
                    for posterior in self._posteriors([originals[i] for i in batch.indices], means[which], None):
                        latents.add(*posterior)

    def _placed(self) -> "_Placed":
        return _Placed(self.params, tuple(jax.local_devices()[:1]) if self.devices is None else self.devices)

    @property
    def _time(self) -> float | None:
        return None if self.model.params.time_emb_dim is None else self.time

    def _stacked(
        self, params: "_Placed", batches: Round, originals: dict[int, Image]
    ) -> tuple[Mesh, list[int], UInt8[np.ndarray, "b h w 3"]]:
        """Returns the devices of a round, the number of the image in each of its slots, and the padded images."""
        height, width, size, _ = batches[0]
        devices = params.devices[: 1 if self._in_bands(batches[0]) else None]
        # Incomplete batches repeat their last image, and incomplete rounds their last batch.
        filled = [(*batch.indices, *batch.indices[-1:] * (size - len(batch.indices))) for batch in batches]
        filled += filled[-1:] * (len(devices) - len(batches))
        slots = [index for indices in filled for index in indices]
        images = np.stack([_padded(originals[index], height, width) for index in slots])
        return Mesh(np.array(devices), (_AXIS,)), slots, images

    def _reconstruct(
        self, source: ImageSource, params: "_Placed", batches: Round, originals: dict[int, Image]
    ) -> Iterator[_Made]:
        """Yields the reconstructions of each batch of a round."""
        mesh, slots, images = self._stacked(params, batches, originals)
        in_bands = self._in_bands(batches[0])
        made = reconstruct(self.model, params.on(mesh), images, self._time, in_bands=in_bands, mesh=mesh)
        self._check(source, slots, made)
        reconstructions = to_uint8(made.images)
        sizes = [(originals[index].shape[0], originals[index].shape[1]) for index in slots]
        distances = self._distances(reconstructions, images, sizes, mesh)
        for _, which in _shares(batches, len(slots)):
            yield _Made(
                [image[:h, :w] for image, (h, w) in zip(reconstructions[which], sizes[which], strict=True)],
                distances[which],
                made.mean[which],
                None if made.logvar is None else made.logvar[which],
            )

    def _in_bands(self, batch: ImageBatch) -> bool:
        return needs_bands(self.model.params, batch.height, batch.width) if self.in_bands is None else self.in_bands

    def _check(self, source: ImageSource, slots: Sequence[int], made: Reconstruction) -> None:
        for index, image in zip(slots, made.images, strict=True):
            if not np.isfinite(image).all():
                raise NotFiniteError(
                    f"the reconstruction of {source.printable_name(index)} holds NaN or infinite values; expected "
                    "finite ones: use other weights"
                )

    def _distances(
        self,
        reconstructions: UInt8[np.ndarray, "b h w 3"],
        originals: UInt8[np.ndarray, "b h w 3"],
        sizes: Sequence[tuple[int, int]],
        mesh: Mesh,
    ) -> list[float | None]:
        """Returns LPIPS of each pair, None for images that are too small."""
        none: list[float | None] = [None] * len(sizes)
        if self.perceptual is None or all(min(size) < self.perceptual.smallest_side for size in sizes):
            return none
        # In 8 bits, as PSNR and SSIM: others measure this number from PNG files.
        pair = to_float(reconstructions), to_float(originals)
        distances = np.asarray(self.perceptual.distance(*pair, np.array(sizes, np.int32), mesh), np.float64).tolist()
        least = self.perceptual.smallest_side
        return [value if min(size) >= least else None for value, size in zip(distances, sizes, strict=True)]

    def _posteriors(
        self,
        shown: Sequence[Image],
        means: Float[np.ndarray, "b H W z"],
        logvars: Float[np.ndarray, "b H W z"] | None,
    ) -> Iterator[_Posterior]:
        """Yields mean and logvar of each image, without those of padding beyond the model's factor."""
        factor = self.model.params.factor
        side = factor // self.model.params.patch
        for index, image in enumerate(shown):
            rows, columns = (length // side for length in padded_size(image.shape[0], image.shape[1], factor))
            part = (slice(index, index + 1), slice(rows), slice(columns))
            yield means[part], None if logvars is None else logvars[part]


def _shares(batches: Round, slots: int) -> Iterator[tuple[ImageBatch, slice]]:
    """Yields the batches of a round, each with the slots of its images, without those that are filled up."""
    for first, batch in zip(range(0, slots, batches[0].compiled_size), batches, strict=False):
        yield batch, slice(first, first + len(batch.indices))


class _Placed:
    """Parameters on the devices that compute, without a second copy on those that hold them."""

    def __init__(self, params: Any, devices: tuple[Any, ...]):
        self.devices, self._params = devices, params
        self._on: dict[Mesh, Any] = {}

    def on(self, mesh: Mesh) -> Any:
        """Returns the parameters on each device of a mesh."""
        if mesh not in self._on:
            self._on[mesh] = jax.tree.map(partial(_replicated, mesh), self._params)
        return self._on[mesh]


def _replicated(mesh: Mesh, leaf: Any) -> jax.Array:
    place, devices = NamedSharding(mesh, PartitionSpec()), list(mesh.devices.flat)
    copies = {}
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
        copies = {shard.device: shard.data for shard in leaf.addressable_shards}
    if not all(device in copies for device in devices):
        return jax.device_put(leaf, place)
    return jax.make_array_from_single_device_arrays(leaf.shape, place, [copies[device] for device in devices])


def of_all_processes(own: Any, failure: Exception | None) -> list[Any]:
    """Returns the JSON values of all processes; raises in all of them if one failed.

    Raises:
      Exception: The failure of this process.
      NotFiniteError: If a reconstruction of another process is not finite, and no process failed otherwise.
      RunError: If another process failed.
    """
    if jax.process_count() == 1:
        if failure is not None:
            raise failure
        return [own]
    text = failure and (str(failure) if isinstance(failure, FlaxVaeError) else repr(failure))
    kind = isinstance(failure, NotFiniteError)
    reports = gather_values({"failure": text, "not_finite": kind, "own": own})
    if failure is not None and not kind:
        raise failure
    failures = [(process, report) for process, report in enumerate(reports) if report["failure"] is not None]
    for process, report in sorted(failures, key=lambda failed: failed[1]["not_finite"]):
        if report["not_finite"]:
            raise NotFiniteError(report["failure"])
        raise RunError(f"process {process} failed: {report['failure']}")
    return [report["own"] for report in reports]


def image_sizes(source: ImageSource, count: int | None = None) -> dict[int, tuple[int, int]]:
    """Returns height and width of each of the first `count` images, or of all, by its number.

    Raises:
      DataError: If there are none, or one of them cannot be read.
    """
    count = len(source) if count is None else min(count, len(source))
    if count < 1:
        raise DataError(f"{source.where} holds no image; an evaluation needs at least one")
    found = scan_images(source, range(count))
    found.require_sound()
    return found.sizes


def _read_ahead(
    threads: ThreadPoolExecutor, source: ImageSource, rounds: Sequence[Round]
) -> Iterator[tuple[Round, dict[int, Image]]]:
    """Yields each round with its images, by their numbers; those of the next round are read meanwhile."""

    def begin(batches: Round) -> dict[int, Future[Image]]:
        return {index: threads.submit(_read, source, index, batch) for batch in batches for index in batch.indices}

    if not rounds:  # of several processes, one may have none
        return
    coming = begin(rounds[0])
    for batches, following in zip(rounds, [*rounds[1:], None], strict=True):
        here, coming = coming, {} if following is None else begin(following)
        yield batches, {index: image.result() for index, image in here.items()}


def _read(source: ImageSource, index: int, batch: ImageBatch) -> Image:
    image = source[index]
    height, width = image.shape[:2]
    if height > batch.height or width > batch.width:
        raise DataError(
            f"{source.printable_name(index)} is {height} x {width}, larger than its header said; save it again"
        )
    return image


def _padded(image: Image, height: int, width: int) -> Image:
    """Pads an image at the bottom and on the right by repeating the last row and column."""
    return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="edge")


def _add_features(meter: FrechetMeter, comparisons: Sequence[Comparison]) -> None:
    """Adds pairs to a meter, which takes those of one size together."""
    sizes: dict[tuple[int, ...], list[Comparison]] = {}
    for comparison in comparisons:
        sizes.setdefault(comparison.original.shape, []).append(comparison)
    for equal in sizes.values():
        meter.add(np.stack([pair.original for pair in equal]), np.stack([pair.reconstruction for pair in equal]))
