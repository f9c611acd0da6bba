"""Loggers of other programs that a run also writes its scores and pictures to."""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flax_vae.convert.files import exists_at, read_at
from flax_vae.train.config import TrainConfig
from flax_vae.train.report.tensorboard import TensorBoard, load_writer
from flax_vae.train.report.wandb import WeightsAndBiases, load_wandb


class Logger(Protocol):
    """What a run writes to.  Each step is written once, however often the run is resumed."""

    @property
    def place(self) -> str:
        """Address or folder where the curves are shown."""
        ...

    def scalars(self, step: int, scores: Mapping[str, float]) -> None:
        """Adds a point to each curve; values that are not finite are left out."""
        ...

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds an image."""
        ...

    def close(self, *, failed: bool = False) -> None:
        """Writes the rest; `failed` if the run ends with an error."""
        ...


def require_loggers(config: TrainConfig) -> None:
    """Checks that the packages of all loggers of a run are installed.

    Args:
      config: Settings of the run.

    Raises:
      RunError: If one is missing; its text has the command that installs it.
    """
    if config.tensorboard:
        load_writer()
    if config.wandb:
        load_wandb()


def chosen_loggers(config: TrainConfig, path: Path, resumed_step: int) -> dict[str, Callable[[], Logger]]:
    """Returns a function for each logger of a run that opens it, by name.

    Args:
      config: Settings of the run.
      path: Run directory, which holds a folder for each logger.
      resumed_step: Number of updates done.
    """
    makers: dict[str, Callable[[], Logger]] = {}
    if config.tensorboard:
        makers["tensorboard"] = lambda: TensorBoard(path / "tensorboard", resumed_step)
    if config.wandb:
        makers["wandb"] = lambda: WeightsAndBiases(path / "wandb", path.resolve().name, config.to_dict())
    return makers


class Loggers:
    """Writes to several loggers; a context manager.

    A logger that raises an error is reported once and not used again, because training goes on without it.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Logger]], say: Callable[[str], None]):
        """Prepares; the loggers are opened when the context is entered.

        Args:
          makers: Function for each logger that opens it, by name.
          say: Function that prints a line.
        """
        self._makers, self._say = makers, say
        self._open: dict[str, Logger] = {}

    def __enter__(self) -> "Loggers":
        for name, make in self._makers.items():
            with self._reported(name):
                self._open[name] = make()
                self._say(f"{name}: {self._open[name].place}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for name, logger in list(self._open.items()):
            with self._reported(name):
                logger.close(failed=kind is not None)

    def show(self, step: int, scores: Mapping[str, float], picture: Path | None) -> None:
        """Adds a point to each curve, and an image from its file if there is one.

        Args:
          step: Number of updates.
          scores: Values by name.
          picture: Path of a PNG file, or None.
        """
        for name, logger in list(self._open.items()):
            with self._reported(name):
                logger.scalars(step, scores)
                if picture is not None and exists_at(picture):
                    with Image.open(io.BytesIO(read_at(picture))) as image:
                        logger.image(step, "held_out", np.asarray(image))

    @contextlib.contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: a network, a service, a full disk
            self._open.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            self._say(f"{name} failed and is not used further; training goes on: {reason}")
