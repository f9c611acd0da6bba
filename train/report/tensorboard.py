"""What a run writes for TensorBoard: scalars and pictures, each step once however often the run was resumed."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flax_vae.convert.extras import needed
from flax_vae.train.errors import RunError

_FLUSH_SECONDS = 10  # a person may be watching


def load_writer() -> Any:
    """Returns tensorboardX's class of writers.

    Raises:
      RunError: If tensorboardX is not installed.
    """
    with needed("--tensorboard needs tensorboardX", "tensorboard", raises=RunError):
        from tensorboardX import SummaryWriter
    return SummaryWriter


class TensorBoard:
    """An event file in a folder of such files.

    What earlier files hold of steps after the checkpoint that a run resumes from is declared void, and TensorBoard
    forgets it: those steps will be written again.
    """

    def __init__(self, folder: Path, resumed_step: int):
        """Opens a new file.

        Args:
          folder: of the event files of this run; made if missing.
          resumed_step: updates that are behind us.

        Raises:
          RunError: if tensorboardX is not installed, or the folder cannot be written.
        """
        writer = load_writer()
        try:
            # The suffix: files are named by the second, and a quick second start would overwrite the first one's.
            suffix = f".{resumed_step}"
            self._writer: Any = writer(
                str(folder), purge_step=resumed_step + 1, flush_secs=_FLUSH_SECONDS, filename_suffix=suffix
            )
        except OSError as error:
            raise RunError(f"{folder} cannot be written ({error}); choose another workdir") from error

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *unused: object) -> None:
        self._writer.close()

    def scalars(self, step: int, scores: Mapping[str, float]) -> None:
        """Adds one point to each curve.  A name such as `held_out/psnr` stands in the group before its slash."""
        for name, value in scores.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds a picture, such as a grid of samples."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def show(self, step: int, scores: Mapping[str, float], picture: Path | None) -> None:
        """Adds a point to each curve, and a picture from its file where there is one."""
        self.scalars(step, scores)
        if picture is not None and picture.exists():
            with Image.open(picture) as image:
                self.image(step, "held_out", np.asarray(image))
