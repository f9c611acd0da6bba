"""Writes scalars and images to Weights & Biases; a resumed run goes on in the same one."""

import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from flax_vae.convert.extras import needed
from flax_vae.convert.files import atomic_file
from flax_vae.train.errors import RunError

PROJECT = "flax-vae"  # unless the environment variable WANDB_PROJECT names another
_ID = "id"  # file with the name that the service knows the run by


def load_wandb() -> Any:
    """Returns the module `wandb`.

    Raises:
      RunError: If it is not installed.
    """
    with needed("--wandb needs wandb", "wandb", raises=RunError):
        import wandb
    return wandb


class WeightsAndBiases:
    """Logs to one run of Weights & Biases, whose id is kept in the run directory.

    Account, project and mode are those of wandb's own environment variables: WANDB_API_KEY, WANDB_PROJECT,
    WANDB_MODE=offline.  Steps that were logged before the run was interrupted are not logged again.
    """

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]):
        """Starts or resumes the run.

        Args:
          folder: Folder of wandb's files, inside the run directory; created if missing.
          name: Name of the run.
          config: Settings to show beside it.

        Raises:
          RunError: If wandb is not installed.
        """
        self._wandb = load_wandb()
        self._run = self._wandb.init(
            project=None if _is_set("WANDB_PROJECT") else PROJECT,
            name=None if _is_set("WANDB_NAME") else name,
            id=_kept_id(folder / _ID),
            resume="allow",
            dir=str(folder.parent),  # to which wandb adds a folder of its own name
            config=dict(config),
            settings=self._wandb.Settings(console="off", silent=True),
        )

    @property
    def place(self) -> str:
        """Address of the run, or the folder from which it can be sent later."""
        if self._run.offline:
            return f"{Path(self._run.dir).parent}, to be sent by wandb sync"
        return str(self._run.url)

    def scalars(self, step: int, scores: Mapping[str, float]) -> None:
        """Adds a point to each curve."""
        finite = {name: value for name, value in scores.items() if math.isfinite(value)}
        if step >= self._run.step:  # wandb warns about earlier steps, and drops them
            self._run.log(finite, step=step)

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds an image, a grid of samples for example."""
        if step >= self._run.step:
            self._run.log({name: self._wandb.Image(pixels)}, step=step)

    def close(self, *, failed: bool = False) -> None:
        """Sends the rest and ends the run; it is marked as crashed if it `failed`."""
        self._run.finish(exit_code=int(failed))


def _is_set(variable: str) -> bool:
    return bool(os.environ.get(variable))


def _kept_id(file: Path) -> str:
    """Returns the id in a file, which is created if missing."""
    try:
        known = file.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        known = ""
    if not known:
        known = uuid.uuid4().hex[:12]
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file, force=True) as new:
            new.write_text(f"{known}\n", encoding="ascii")
    return known
