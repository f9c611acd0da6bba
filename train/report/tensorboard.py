"""Writes scalars and images for TensorBoard; each step appears once, however often the run was resumed."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from flax_vae.convert.extras import needed
from flax_vae.train.errors import RunError

_FLUSH_SECONDS = 10  # short, because TensorBoard may be open


def load_writer() -> Any:
    """Returns tensorboardX's writer class.

    Raises:
      RunError: If tensorboardX is not installed.
    """
    with needed("--tensorboard needs tensorboardX", "tensorboard", raises=RunError):
        from tensorboardX import SummaryWriter
    return SummaryWriter


class TensorBoard:
    """Writes an event file into a folder of event files.

    Events of earlier files after the step of the resumed checkpoint are purged, because those steps are written again.
    """

    def __init__(self, folder: Path, resumed_step: int):
        """Opens a new file.

        Args:
          folder: Folder of this run's event files; created if missing.
          resumed_step: Number of updates done.

        Raises:
          RunError: If tensorboardX is not installed, or the folder cannot be written.
        """
        writer = load_writer()
        self._folder = folder
        try:
            # Files are named by the second; the suffix keeps a quick second start from overwriting the first file.
            suffix = f".{resumed_step}"
            self._writer: Any = writer(
                str(folder), purge_step=resumed_step + 1, flush_secs=_FLUSH_SECONDS, filename_suffix=suffix
            )
        except OSError as error:
            raise RunError(f"{folder} cannot be written ({error}); choose another workdir") from error

    @property
    def place(self) -> str:
        """Folder that TensorBoard reads."""
        return str(self._folder)

    def scalars(self, step: int, scores: Mapping[str, float]) -> None:
        """Adds a point to each curve; the part of a name before its slash, as in `held_out/psnr`, is its group."""
        for name, value in scores.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds an image, a grid of samples for example."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self, *, failed: bool = False) -> None:
        """Writes the rest; TensorBoard does not show whether a run `failed`."""
        self._writer.close()
