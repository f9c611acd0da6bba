"""Collects statistics of latents and of vectors in float64, batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from flax_vae.convert.errors import ArgumentError, FlaxVaeError
from flax_vae.convert.latents import ChannelStats
from flax_vae.train.errors import TrainError

_ROWS = 128  # rows of a covariance that processes exchange at a time
ACTIVE = 0.01  # variance of the posterior's mean over the data, above which a channel counts as active


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
    """Statistics of raw latents over a data set; lists have one entry per channel.

    Mean and deviation are those of latents sampled from the posteriors, computed without sampling:
    `Var[z] = Var[mean] + E[variance]`.  Every position of every image has equal weight.

    Attributes:
      channel_mean: Mean of each channel.
      channel_std: Standard deviation of each channel.
      channel_activity: Variance of the posterior's mean in each channel, without the posterior's own variance.
      active_channels: Number of channels whose activity is more than 0.01 (Burda, Grosse & Salakhutdinov 2016,
        section 4.1).
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
    active_channels: int
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
    """Collects the statistics of posteriors, batch by batch."""

    def __init__(self, channels: int):
        """Starts without any posteriors."""
        self._channels = ChannelStats.nothing(channels)
        self._divergence: float | None = 0.0  # None once latents came without a posterior
        self._images = 0

    def add(self, mean: Float[np.ndarray, "b h w z"], logvar: Float[np.ndarray, "b h w z"] | None) -> None:
        """Adds the posteriors of a batch; without `logvar`, its latents."""
        mean = np.asarray(mean, np.float64)
        logvar = None if logvar is None else np.asarray(logvar, np.float64)
        self._channels += ChannelStats.of(mean, logvar)
        self._images += len(mean)
        if logvar is None or self._divergence is None:
            self._divergence = None
        else:
            self._divergence += 0.5 * float(np.sum(mean**2 + np.exp(logvar) - 1.0 - logvar))

    def result(self) -> PosteriorSummary:
        """Returns the statistics so far.

        Raises:
          ValueError: If there are no posteriors yet.
          TrainError: If all latents are equal, or one is not finite.
        """
        channels = self._channels
        if not channels.count:
            raise ArgumentError("there are no latents to summarise; add at least one batch")
        try:
            mean, std = channels.overall()
        except FlaxVaeError as error:
            raise TrainError(str(error)) from error
        activity = channels.scatter / channels.count
        divergence = self._divergence
        return PosteriorSummary(
            channel_mean=channels.mean.tolist(),
            channel_std=np.sqrt(channels.channel_variance).tolist(),
            channel_activity=activity.tolist(),
            active_channels=int((activity > ACTIVE).sum()),
            mean=mean,
            std=std,
            kl_per_image=None if divergence is None else divergence / self._images,
            kl_per_number=None if divergence is None else divergence / (channels.count * len(activity)),
            shift_factor=mean,
            scale_factor=1.0 / std,
        )
