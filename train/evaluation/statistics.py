"""Collects statistics of latents and of vectors in float64, batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from flax_vae.convert.errors import ArgumentError, FlaxVaeError
from flax_vae.convert.latents import ChannelStats
from flax_vae.train.errors import TrainError

_ROWS = 128  # rows of a covariance that processes exchange at a time
ACTIVE = 0.01  # variance of the posterior's mean over the data, above which a channel counts as active

# Upper ends of the bands of frequencies, as parts of the highest that a latent can have, half a cycle per number.  Each
# but the first is an octave: the last is lost if height and width are halved.
BANDS = (1 / 8, 1 / 4, 1 / 2, 1.0)


class RunningCovariance:
    """Collects mean and covariance of vectors, batch by batch.

    E[x²] - E[x]² loses all digits if the mean is large relative to the deviation; each batch is therefore centred
    before it is added.

    Attributes:
      count: Number of vectors so far.
      mean: Mean of the vectors so far.

    Source: Chan, Golub & LeVeque 1979.
    """

    def __init__(self, dimension: int):
        """Starts without any vectors."""
        self.count = 0
        self.mean = np.zeros(dimension)
        self._scatter = np.zeros((dimension, dimension))

    def add(self, vectors: Float[np.ndarray, "n d"]) -> None:
        """Adds a batch, which may be empty."""
        vectors = np.asarray(vectors, np.float64)
        count = len(vectors)
        if not count:
            return
        mean = vectors.mean(axis=0)
        centred = vectors - mean
        delta, total = mean - self.mean, self.count + count
        self._scatter += centred.T @ centred + np.outer(delta, delta) * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def merged(self, gather: Callable[[np.ndarray], np.ndarray]) -> "RunningCovariance":
        """Returns the statistics of the vectors of all processes, by rows of the covariance, to need little memory.

        Args:
          gather: Function that returns the float64 arrays of all processes, stacked.
        """
        whole = RunningCovariance(self.mean.size)
        counts, means = gather(np.array([self.count], np.float64))[:, 0], gather(self.mean)
        if not counts.sum():
            return whole
        whole.count, whole.mean = int(counts.sum()), np.average(means, axis=0, weights=counts)
        apart = means - whole.mean
        for first in range(0, self.mean.size, _ROWS):
            rows = slice(first, first + _ROWS)
            between = np.einsum("p,pi,pj->ij", counts, apart[:, rows], apart)
            whole._scatter[rows] = gather(self._scatter[rows]).sum(axis=0) + between
        return whole

    def covariance(self, *, correction: int = 0) -> Float[np.ndarray, "d d"]:
        """Returns the sum of products about the mean, divided by `count - correction`.

        Raises:
          ValueError: If there are no more than `correction` vectors.
        """
        if self.count <= correction:
            raise ArgumentError(f"{self.count} vectors have no covariance; add at least {correction + 1}")
        return self._scatter / (self.count - correction)


@dataclass(frozen=True)
class PosteriorSummary:
    """Statistics of raw latents over a data set; lists have one entry per channel, unless told otherwise.

    Mean and deviation are those of latents sampled from the posteriors, computed without sampling:
    `Var[z] = Var[mean] + E[variance]`.  Every position of every image has equal weight.

    Attributes:
      channel_mean: Mean of each channel.
      channel_std: Standard deviation of each channel.
      channel_activity: Variance of the posterior's mean in each channel, without the posterior's own variance.
      channel_kl: KL divergence from the standard normal of each channel in nats per position; None for a model without
        posteriors.
      active_channels: Number of channels whose activity is more than 0.01 (Burda, Grosse & Salakhutdinov 2016,
        section 4.1).
      active_share: Share of the channels that are active.
      spectrum: Share of each of `BANDS` in the variance of the posterior's mean, all channels together.  A frequency is
        the larger one of the vertical and the horizontal.  The first band includes differences between images.
      white_noise: What `spectrum` would be for numbers that do not depend on each other, at these sizes.
      mean: Mean over all channels.
      std: Standard deviation of all numbers together, regardless of their channel.
      kl_per_image: Mean KL divergence from the standard normal in nats; None for a model without posteriors.
      kl_per_number: KL divergence per number of a latent in nats, or None; comparable between images of different
        sizes.
      shift_factor: Shift that centres the latents, their mean.
      scale_factor: Scale that brings the latents to unit deviation, `1 / std`.

    Source: CompVis/latent-diffusion `ddpm.py::on_train_batch_start` for the scale, 1 / std over all numbers of drawn
    latents; black-forest-labs/flux `autoencoder.py` for the order, `scale_factor * (z - shift_factor)`.
    """

    channel_mean: list[float]
    channel_std: list[float]
    channel_activity: list[float]
    channel_kl: list[float] | None
    active_channels: int
    active_share: float
    spectrum: list[float]
    white_noise: list[float]
    mean: float
    std: float
    kl_per_image: float | None
    kl_per_number: float | None
    shift_factor: float
    scale_factor: float


class PosteriorSink(Protocol):
    """Receiver of the posteriors of images, in one order."""

    def add(self, mean: Float[np.ndarray, "b h w z"], logvar: Float[np.ndarray, "b h w z"] | None) -> None:
        """Receives the posteriors of a batch; without `logvar`, their means or the latents of a model without any."""
        ...


class PosteriorStats:
    """Collects the statistics of posteriors, batch by batch.

    Attributes:
      means: Mean and covariance of the channels of the posteriors' means.
    """

    def __init__(self, channels: int):
        """Starts without any posteriors."""
        self.means = RunningCovariance(channels)
        self._variance = np.zeros(channels)  # sums over positions, as the following
        self._divergence = np.zeros(channels)
        self._energy = np.zeros(len(BANDS))
        self._frequencies = np.zeros(len(BANDS))  # of all images, as many as positions
        self._images = 0
        self._without_posterior = 0  # images that came as latents

    def add(self, mean: Float[np.ndarray, "b h w z"], logvar: Float[np.ndarray, "b h w z"] | None) -> None:
        """Adds the posteriors of a batch; without `logvar`, its latents."""
        mean = np.asarray(mean, np.float64)
        self.means.add(mean.reshape(-1, mean.shape[-1]))
        self._energy += band_energies(mean)
        self._frequencies += len(mean) * np.bincount(bands_of(*mean.shape[1:3]).reshape(-1), minlength=len(BANDS))
        self._images += len(mean)
        if logvar is None:
            self._without_posterior += len(mean)
            return
        logvar = np.asarray(logvar, np.float64)
        variance = np.exp(logvar)
        self._variance += variance.sum(axis=(0, 1, 2))
        self._divergence += 0.5 * np.sum(mean**2 + variance - 1.0 - logvar, axis=(0, 1, 2))

    def merged(self, gather: Callable[[np.ndarray], np.ndarray]) -> "PosteriorStats":
        """Returns the statistics of the posteriors of all processes; a collective call of all of them.

        Args:
          gather: Function that returns the float64 arrays of all processes, stacked; see
            `flax_vae.train.devices.gather_float64`.
        """
        channels = self.means.mean.size
        whole = PosteriorStats(channels)
        whole.means = self.means.merged(gather)
        counts = np.array([self._images, self._without_posterior], np.float64)
        sums = np.concatenate([self._variance, self._divergence, self._energy, self._frequencies, counts])
        sums = gather(sums).sum(axis=0)
        whole._variance, whole._divergence, rest = np.split(sums, [channels, 2 * channels])
        whole._energy, whole._frequencies, (images, without) = np.split(rest, [len(BANDS), 2 * len(BANDS)])
        whole._images, whole._without_posterior = int(images), int(without)
        return whole

    def result(self) -> PosteriorSummary:
        """Returns the statistics so far.

        Raises:
          ValueError: If there are no posteriors yet.
          TrainError: If all latents are equal, or one is not finite.
        """
        count, channels = self.means.count, self.means.mean.size
        if not count:
            raise ArgumentError("there are no latents to summarise; add at least one batch")
        activity = np.diag(self.means.covariance())
        stats = ChannelStats(count, self.means.mean, activity * count, self._variance)
        try:
            mean, std = stats.overall()
        except FlaxVaeError as error:
            raise TrainError(str(error)) from error
        divergence = None if self._without_posterior else self._divergence
        active = int((activity > ACTIVE).sum())
        return PosteriorSummary(
            channel_mean=stats.mean.tolist(),
            channel_std=np.sqrt(stats.channel_variance).tolist(),
            channel_activity=activity.tolist(),
            channel_kl=None if divergence is None else (divergence / count).tolist(),
            active_channels=active,
            active_share=active / channels,
            spectrum=self._spectrum(activity.sum() * count),
            white_noise=(self._frequencies / self._frequencies.sum()).tolist(),
            mean=mean,
            std=std,
            kl_per_image=None if divergence is None else float(divergence.sum()) / self._images,
            kl_per_number=None if divergence is None else float(divergence.sum()) / (count * channels),
            shift_factor=mean,
            scale_factor=1.0 / std,
        )

    def _spectrum(self, total: float) -> list[float]:
        """Returns the share of each band in the sum of squared deviations from the mean of the data set."""
        if not total > 0:  # posteriors of equal means
            return [0.0] * len(BANDS)
        upper = self._energy[1:]
        # Only now is the mean of the data set known, from which constant parts of images are measured.
        return [max(0.0, 1.0 - float(upper.sum()) / total), *(upper / total).tolist()]


def band_energies(z: Float[np.ndarray, "b h w z"]) -> Float[np.ndarray, " bands"]:
    """Returns the sum of squares in each of `BANDS` of all images and channels, each relative to its own mean."""
    height, width = z.shape[1:3]
    spectrum = np.fft.fft2(z - z.mean(axis=(1, 2), keepdims=True), axes=(1, 2))
    power = np.square(np.abs(spectrum)).sum(axis=(0, 3)) / (height * width)  # Parseval: sums of squares of `z`
    return np.bincount(bands_of(height, width).reshape(-1), power.reshape(-1), minlength=len(BANDS))


def bands_of(height: int, width: int) -> Int[np.ndarray, "h w"]:
    """Returns the index in `BANDS` of each frequency of a map."""
    rows, columns = (np.abs(np.fft.fftfreq(length)) for length in (height, width))
    return np.searchsorted(np.array(BANDS[:-1]) / 2, np.maximum(rows[:, None], columns))
