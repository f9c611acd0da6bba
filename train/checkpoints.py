"""Checkpoints of the state, by orbax; no other file knows that.

Each is written under another name and renamed when complete, so a process that is killed leaves the older ones whole.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from train.config import TrainConfig
from train.errors import RunError

_KEEP = 2


class Checkpoints:
    """The checkpoints of one run.  Steps are numbers of completed updates."""

    def __init__(self, folder: Path):
        """Opens the folder, which is made if missing."""
        self._folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEEP,
            cleanup_tmp_directories=True,  # what a killed process left half written
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        try:
            self._manager.close()  # waits for what is being written
        except Exception as error:
            if kind is None:  # otherwise the error on its way out is the one to hear of
                raise RunError(f"{self._folder}: the last checkpoint could not be written ({error})") from error

    @property
    def latest_step(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    def restore(self, step: int, like: Any) -> Any:
        """The state after `step` updates.

        Args:
          step: one that is there, such as `latest_step`.
          like: shapes, dtypes and shardings to restore to.

        Raises:
          RunError: if it cannot be read.
        """
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
        except Exception as error:
            raise RunError(
                f"{self._folder / str(step)} cannot be restored ({type(error).__name__}: {_first_line(error)}); remove "
                "it to go on from the checkpoint before it"
            ) from error
        return restored["state"]

    def save(self, step: int, state: Any, config: TrainConfig, *, wait: bool = False) -> None:
        """Saves in the background, after copying the state; `wait` until it is on disk.

        Raises:
          RunError: if this or the one before could not be written, for example because the disk is full.
        """
        if step == self.latest_step:
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config.to_dict()))
        try:
            with jax.transfer_guard("allow"):  # reading the state is what this is for
                self._manager.save(step, args=args)
            if wait:
                self._manager.wait_until_finished()
        except Exception as error:
            raise RunError(f"{self._folder}: no checkpoint of step {step} ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
