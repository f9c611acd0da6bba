"""Statistics of more numbers than fit into memory, in float64: of latents, and of any vectors."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flax_vae.convert.latents import ChannelStats
from flax_vae.train.errors import TrainError

ACTIVE = 0.01  # least variance of the posterior's mean over the data of a channel that says something


class RunningCovariance:
    """Mean and covariance of vectors, batch after batch.

    E[x²] - E[x]² would lose all digits where the mean is large beside the deviation; batches are put together around
    their means instead.

    Attributes:
      count: vectors so far.
      mean: of them.

    Source: Chan, Golub & LeVeque 1979.
    """

    def __init__(self, dimension: int):
        self.count = 0
        self.mean = np.zeros(dimension)
        self._scatter = np.zeros((dimension, dimension))

    def add(self, vectors: Float[np.ndarray, "n d"]) -> None:
        """Takes a batch in; it may be empty."""
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

    def covariance(self, *, correction: int = 0) -> Float[np.ndarray, "d d"]:
        """The sum of products about the mean, divided by `count - correction`.

        Raises:
          ValueError: if there are no more vectors than that.
        """
        if self.count <= correction:
            raise ValueError(f"{self.count} vectors have no covariance; add at least {correction + 1}")
        return self._scatter / (self.count - correction)


@dataclass(frozen=True)
class PosteriorSummary:
    """What raw latents look like over a data set; one entry per channel where there are several.

    Mean and deviation are those of latents that are drawn from the posteriors, `Var[z] = Var[mean] + E[variance]`, and
    so need no drawing.  Every position of every image counts the same.

    Attributes:
      channel_mean: of each channel.
      channel_std: standard deviation of each channel.
      channel_activity: variance of the posterior's mean; what the encoder tells, without what the posterior blurs.
      active_channels: those whose activity is more than 0.01 (Burda, Grosse & Salakhutdinov 2016, section 4.1).
      mean: over all channels.
      std: standard deviation of all numbers together, whatever their channel.
      kl_per_image: mean divergence from the standard normal in nats.
      kl_per_number: the same for one number of a latent; images of different sizes can be compared by it.
      shift_factor: that centres the latents, their mean.
      scale_factor: that brings them to unit deviation, `1 / std`.

    Source: CompVis/latent-diffusion `ddpm.py::on_train_batch_start` for the scale, 1 / std over all numbers of drawn
    latents; black-forest-labs/flux `autoencoder.py` for the order, `scale_factor * (z - shift_factor)`.
    """

    channel_mean: list[float]
    channel_std: list[float]
    channel_activity: list[float]
    active_channels: int
    mean: float
    std: float
    kl_per_image: float
    kl_per_number: float
    shift_factor: float
    scale_factor: float


class PosteriorStats:
    """Gathers `PosteriorSummary` over posteriors, one batch after the other."""

    def __init__(self, channels: int):
        self._moments = ChannelStats.nothing(channels)
        self._divergence = 0.0
        self._images = 0

    def add(self, mean: Float[np.ndarray, "b h w z"], logvar: Float[np.ndarray, "b h w z"]) -> None:
        """Takes the posteriors of a batch in."""
        mean, logvar = np.asarray(mean, np.float64), np.asarray(logvar, np.float64)
        self._moments += ChannelStats.of(mean, logvar)
        self._divergence += 0.5 * float(np.sum(mean**2 + np.exp(logvar) - 1.0 - logvar))
        self._images += len(mean)

    def result(self) -> PosteriorSummary:
        """Everything so far.

        Raises:
          ValueError: if that is nothing.
          TrainError: if all latents are equal, or one is not finite.
        """
        moments = self._moments
        if not moments.count:
            raise ValueError("there are no latents to take statistics of")
        try:
            mean, std = moments.overall()
        except ValueError as error:
            raise TrainError(str(error)) from error
        activity = moments.scatter / moments.count
        return PosteriorSummary(
            channel_mean=moments.mean.tolist(),
            channel_std=np.sqrt(moments.channel_variance).tolist(),
            channel_activity=activity.tolist(),
            active_channels=int((activity > ACTIVE).sum()),
            mean=mean,
            std=std,
            kl_per_image=self._divergence / self._images,
            kl_per_number=self._divergence / (moments.count * len(activity)),
            shift_factor=mean,
            scale_factor=1.0 / std,
        )
