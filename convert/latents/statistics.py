"""Mean and deviation of latent channels in float64, for data that does not fit into memory.

Every shard stores its own statistics, and those of a data set are merged in the order of the shards, so the result does
not depend, to the last bit, on which process computed which shard when.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from flax_vae.convert.errors import ArgumentError, FileError


@dataclass(frozen=True)
class ChannelStats:
    """Count, mean and scatter of latents, one value per channel.

    Attributes:
      count: Number of positions, each of which has one value of every channel.
      mean: Mean over the positions.
      scatter: Sum of squared deviations from the mean.
      variance: Sum of the posterior variances; zeros if only latents are known.

    Examples:
      >>> stats = ChannelStats.of(np.array([[0.0, 1.0], [2.0, 5.0]]))
      >>> stats.count, stats.mean
      (2, array([1., 3.]))

    Source: Chan, Golub & LeVeque 1979, for merging two of them without loss of precision.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray
    variance: np.ndarray

    @classmethod
    def nothing(cls, channels: int) -> "ChannelStats":
        """Returns the statistics of zero latents.

        Args:
          channels: Number of channels.
        """
        return cls(0, np.zeros(channels), np.zeros(channels), np.zeros(channels))

    @classmethod
    def of(cls, mean: np.ndarray, logvar: np.ndarray | None = None, *, std: np.ndarray | None = None) -> "ChannelStats":
        """Returns the statistics of latents `... c`, or of posteriors with log variances or deviations `... c`.

        Args:
          mean: Latents, or means of posteriors.
          logvar: Log variances of posteriors.
          std: Standard deviations of posteriors, in place of `logvar`.
        """
        values = np.asarray(mean, np.float64).reshape(-1, mean.shape[-1])
        if not len(values):
            return cls.nothing(mean.shape[-1])
        centre = values.mean(axis=0)
        variance = np.zeros(mean.shape[-1])
        if logvar is not None:
            variance = np.exp(np.asarray(logvar, np.float64)).reshape(values.shape).sum(axis=0)
        if std is not None:
            variance = np.square(np.asarray(std, np.float64)).reshape(values.shape).sum(axis=0)
        return cls(len(values), centre, np.square(values - centre).sum(axis=0), variance)

    def __add__(self, other: "ChannelStats") -> "ChannelStats":
        """Returns the statistics of both sets of latents."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        return ChannelStats(
            count,
            self.mean + delta * (other.count / count),
            self.scatter + other.scatter + delta**2 * (self.count * other.count / count),
            self.variance + other.variance,
        )

    @property
    def channel_variance(self) -> np.ndarray:
        """Returns the variance of latents drawn from the posteriors, `Var[z] = Var[mean] + E[variance]`, exactly."""
        return (self.scatter + self.variance) / self.count

    def overall(self) -> tuple[float, float]:
        """Returns mean and standard deviation of all values together, over all channels.

        Raises:
          ValueError: If there are no latents, or all are equal, or one is not finite.
        """
        if not self.count:
            raise ArgumentError("no latents; expected at least one")
        mean, std = float(self.mean.mean()), float(np.sqrt(self.channel_variance.mean() + self.mean.var()))
        if not math.isfinite(std) or std == 0:
            raise ArgumentError(
                f"the latents have a standard deviation of {std}; expected a positive number; check the weights"
            )
        return mean, std

    def dumps(self) -> str:
        """Returns a JSON text; `loads` restores every bit."""
        return json.dumps({name: np.asarray(value).tolist() for name, value in vars(self).items()})

    @classmethod
    def loads(cls, text: str) -> "ChannelStats":
        """Returns the statistics of a JSON text; the inverse of `dumps`.

        Args:
          text: Text of `dumps`.
        """
        values = json.loads(text)
        return cls(int(values.pop("count")), **{name: np.asarray(value, float) for name, value in values.items()})


@dataclass(frozen=True)
class LatentStatistics:
    """Statistics of the latents of a data set; every position of every entry counts equally, padding included.

    For stored means, these are statistics of the means; for stored samples, of the samples; for stored moments, of
    latents drawn from the posteriors, computed exactly as `Var[z] = Var[mean] + E[variance]`.

    Attributes:
      positions: Number of positions.
      scaled: Whether they describe scaled latents, as returned by `encode`, or raw ones.
      channel_mean: Mean of each channel.
      channel_std: Standard deviation of each channel.
      mean: Mean over all channels.
      std: Standard deviation of all values together, over all channels.
      shift_factor: Value for an architecture that gives these latents mean 0; None for models that normalise each
        channel separately (FLUX.2).
      scale_factor: Value for an architecture that gives these latents standard deviation 1, or None as above.

    Source: CompVis/latent-diffusion `ddpm.py::on_train_batch_start`, `1 / std` over all values.
    """

    positions: int
    scaled: bool
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]
    mean: float
    std: float
    shift_factor: float | None
    scale_factor: float | None

    @classmethod
    def of(
        cls, parts: Iterable[ChannelStats], channels: int, *, scaled: bool, factors: tuple[float, float] | None
    ) -> "LatentStatistics":
        """Merges the statistics of the shards, in their order.

        Args:
          parts: Statistics of each shard.
          channels: Number of channels of a latent.
          scaled: Whether the latents are scaled.
          factors: Scale and shift of the latents, 1 and 0 for raw ones; None if channels are normalised.

        Returns:
          Statistics of all latents.

        Raises:
          ValueError: If there are no latents, or all are equal, or one is not finite.
        """
        total = sum(parts, ChannelStats.nothing(channels))
        mean, std = total.overall()
        scale, shift = factors or (1.0, 0.0)
        return cls(
            total.count,
            scaled,
            tuple(total.mean.tolist()),
            tuple(np.sqrt(total.channel_variance).tolist()),
            mean,
            std,
            None if factors is None else mean / scale + shift,
            None if factors is None else scale / std,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns all fields as values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LatentStatistics":
        """Returns the statistics of a dictionary; the inverse of `to_dict`.

        Args:
          values: Fields by name.

        Raises:
          FileError: If a field is missing or unknown.
        """
        if set(values) != {field.name for field in fields(cls)}:
            raise FileError(f"statistics have the fields {', '.join(values)}; write them again, or get the data again")
        read: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**read)
