"""Mean and deviation of the channels of latents, of more than fit into memory, in float64.

Every shard keeps its own moments, and those of a data set are put together in the order of the shards: the last bit of
the result does not depend on who computed which shard when.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from flax_vae.convert.errors import FileError


@dataclass(frozen=True)
class LatentMoments:
    """Moments of some latents, one number per channel.

    Attributes:
      count: positions, each of which holds one number of every channel.
      mean: over them.
      scatter: sum of squares about that mean.
      variance: sum of the posteriors' own variances; zeros where only a latent is known.

    Source: Chan, Golub & LeVeque 1979, for putting two together without losing digits.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray
    variance: np.ndarray

    @classmethod
    def nothing(cls, channels: int) -> "LatentMoments":
        """Of no latents yet."""
        return cls(0, np.zeros(channels), np.zeros(channels), np.zeros(channels))

    @classmethod
    def of(cls, mean: np.ndarray, logvar: np.ndarray | None = None) -> "LatentMoments":
        """Of latents `... c`, or of posteriors with the natural logarithms of their variances, `... c` too."""
        values = np.asarray(mean, np.float64).reshape(-1, mean.shape[-1])
        if not len(values):
            return cls.nothing(mean.shape[-1])
        centre = values.mean(axis=0)
        variance = np.zeros(mean.shape[-1])
        if logvar is not None:
            variance = np.exp(np.asarray(logvar, np.float64)).reshape(values.shape).sum(axis=0)
        return cls(len(values), centre, np.square(values - centre).sum(axis=0), variance)

    def __add__(self, other: "LatentMoments") -> "LatentMoments":
        """Of both together."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        return LatentMoments(
            count,
            self.mean + delta * (other.count / count),
            self.scatter + other.scatter + delta**2 * (self.count * other.count / count),
            self.variance + other.variance,
        )

    @property
    def channel_variance(self) -> np.ndarray:
        """Of latents drawn from the posteriors, `Var[z] = Var[mean] + E[variance]`; nothing is drawn."""
        return (self.scatter + self.variance) / self.count

    def overall(self) -> tuple[float, float]:
        """Returns mean and standard deviation of all numbers together, whatever their channel.

        Raises:
          ValueError: if there are no latents, or all are equal, or one is not finite.
        """
        if not self.count:
            raise ValueError("there are no latents to take statistics of")
        mean, std = float(self.mean.mean()), float(np.sqrt(self.channel_variance.mean() + self.mean.var()))
        if not math.isfinite(std) or std == 0:
            raise ValueError(
                f"the latents have a standard deviation of {std}; look at the weights, they may be damaged"
            )
        return mean, std

    def dumps(self) -> str:
        """As JSON, from which `loads` makes the same bits."""
        return json.dumps({name: np.asarray(value).tolist() for name, value in vars(self).items()})

    @classmethod
    def loads(cls, text: str) -> "LatentMoments":
        """The inverse of `dumps`."""
        values = json.loads(text)
        return cls(int(values.pop("count")), **{name: np.asarray(value, float) for name, value in values.items()})


@dataclass(frozen=True)
class LatentStatistics:
    """What the latents of a data set look like; every position of every entry counts the same, padded ones too.

    Of stored means they are the statistics of the means; of stored moments those of latents drawn from the posteriors,
    `Var[z] = Var[mean] + E[variance]`, without drawing any; of stored samples those of the samples.

    Attributes:
      positions: how many were counted.
      scaled: whether they are about scaled latents, as `encode` returns them, or about raw ones.
      channel_mean: of each channel.
      channel_std: standard deviation of each channel.
      mean: over all channels.
      std: standard deviation of all numbers together, whatever their channel.
      shift_factor: of an architecture record under which these latents would have mean 0; None for models that
        normalise each channel by itself instead (FLUX.2).
      scale_factor: the same for deviation 1.

    Source: CompVis/latent-diffusion `ddpm.py::on_train_batch_start`, `1 / std` over all numbers.
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
        cls, parts: Iterable[LatentMoments], channels: int, *, scaled: bool, factors: tuple[float, float] | None
    ) -> "LatentStatistics":
        """Puts the moments of the shards together, in their order.

        Args:
          parts: of each shard.
          channels: of a latent.
          scaled: whether the latents are scaled ones.
          factors: scale and shift that they were scaled by, 1 and 0 for raw ones; None where channels are normalised.

        Raises:
          ValueError: if there are no latents, or all are equal, or one is not finite.
        """
        total = sum(parts, LatentMoments.nothing(channels))
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
        """All fields as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LatentStatistics":
        """The inverse of `to_dict`.

        Raises:
          FileError: if a field is missing or unknown.
        """
        if set(values) != {field.name for field in fields(cls)}:
            raise FileError(f"statistics have the fields {', '.join(values)}; write them again, or get the data again")
        read: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**read)
