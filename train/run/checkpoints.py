"""Checkpoints of the state, by orbax; no other file knows that.

Each is written under another name, gets a manifest of its files (`flax_vae.train.run.manifest`) and is then renamed,
and only then is an older one deleted: a process that is killed at any moment leaves whole ones behind.  What a disk
does to them later is found before they are restored.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from flax_vae.convert.errors import FileError
from flax_vae.convert.files import read_manifest
from flax_vae.errors import first_of
from flax_vae.train.config import TrainConfig
from flax_vae.train.errors import RunError
from flax_vae.train.run.manifest import write_manifest
from flax_vae.train.run.recovery import (
    decided_by_the_first_process,
    find_newest_good,
    find_steps,
    require_whole,
    set_aside_diverged,
)
from flax_vae.train.run.tree_spec import describe_tree, require_restorable, tree_differences

_SHOW = 3  # leaves named in one error


class Checkpoints:
    """The checkpoints of one run.  Steps are numbers of completed updates.

    In a run of several processes every one of them calls every method, on one file system.

    Attributes:
      problems: a sentence for each step that `newest_good` found wanting.
    """

    def __init__(self, folder: Path, *, keep: int = 2, best: tuple[str, Literal["max", "min"]] | None = None):
        """Opens the folder, which is made when something is saved.

        One more step always stays: the newest whose weights a later update has shown to give finite numbers.  A run
        that diverges, and saves on, never pushes it out.

        Args:
          folder: of the checkpoints.
          keep: how many of the last steps stay.
          best: name of a score, and which of its values is best: that step stays too.

        Raises:
          RunError: if `keep` is less than 1.
        """
        if keep < 1:
            raise RunError(f"keep={keep} would keep no checkpoint; keep at least 1")
        self.problems: list[str] = []
        self._folder, self._keep, self._best = folder, keep, best
        self._good: set[int] = set()  # verified in this process
        self._saving: tuple[int, Mapping[str, float]] | None = None
        self._scores = {step: self._read_scores(step) for step in find_steps(self._folder)}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        try:
            self._close()  # waits for what is being written
        except Exception as error:
            if kind is None:  # otherwise the error on its way out is the one to hear of
                raise RunError(f"{self._folder}: the last checkpoint could not be written ({error})") from error

    @property
    def latest_step(self) -> int | None:
        """The newest step, be it whole or not, or None."""
        if "_manager" in self.__dict__:
            return self._manager.latest_step()
        return max(find_steps(self._folder), default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the best score, the earliest of equals; None if none has one."""
        return self._best_of(find_steps(self._folder))

    def newest_good(self) -> int | None:
        """The newest step that is as it was written; to be asked before the first save.

        Steps that are newer and are not are renamed (`corrupt-STEP`, or `unverified-STEP` if nothing says what they
        should be), never deleted, and described in `problems`.

        Returns:
          The step, or None if there is none at all.

        Raises:
          RunError: if there are steps and all are damaged or unverified; then nothing is renamed, lest the next start
            finds an empty folder and begins anew.
        """
        self._close()
        step = decided_by_the_first_process(lambda: find_newest_good(self._folder, self.problems))
        self._scores = {step: self._read_scores(step) for step in find_steps(self._folder)}
        if step is not None:
            self._good.add(step)
        return step

    def restore(self, step: int, like: Any) -> Any:
        """The state after `step` updates.

        Args:
          step: one that is there, such as `newest_good()` or `best_step`.
          like: shapes, dtypes and shardings to restore to.

        Raises:
          RunError: if it is damaged, or holds other leaves, shapes or dtypes.
        """
        path = self._folder / str(step)
        if step not in self._good:
            decided_by_the_first_process(lambda: require_whole(self._folder, step))
            self._good.add(step)
        try:
            self._manager.wait_until_finished()
            stored = describe_tree(self._manager.item_metadata(step)["state"].tree)
            wrong = tree_differences(stored, describe_tree(like))
            if not wrong:
                restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))
                return restored["state"]
        except Exception as error:
            raise RunError(
                f"{path} cannot be restored ({type(error).__name__}: {_first_line(error)}); it is as it was written, "
                "so keep it: check the memory that is free and the versions of jax and orbax, then start again"
            ) from error
        raise RunError(
            f"{path} cannot be restored, for it is of another run: {first_of(wrong, _SHOW)}; "
            "use the settings that it was written with, or another workdir"
        )

    def save(
        self,
        step: int,
        state: Any,
        config: TrainConfig,
        *,
        wait: bool = False,
        scores: Mapping[str, float] | None = None,
    ) -> None:
        """Saves in the background, after copying the state; `wait` until it is on disk.

        Args:
          step: of the state; one that is there already is not written again.
          state: a tree of jax arrays and Python numbers.
          config: the run.
          wait: until it is complete.
          scores: how good the model is, of which the one that `best` names decides which step stays; and `skipped`,
            how many updates were left out so far.

        Raises:
          RunError: if this or the one before could not be written, for example because the disk is full, or if the
            state holds what could not be restored.
        """
        require_restorable(state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config.to_dict()))
        try:
            with jax.transfer_guard("allow"):  # reading the state is what this is for
                if step != self.latest_step:
                    self._manager.wait_until_finished()
                    self._saving = (step, scores or {})
                    self._scores[step] = scores or {}
                    if not self._manager.save(step, args=args):
                        raise RunError(f"{self._folder} holds step {self.latest_step}, which is later")
                if wait:
                    self._manager.wait_until_finished()
        except Exception as error:
            self._scores.pop(step, None)
            raise RunError(f"{self._folder}: no checkpoint of step {step} ({_reason(error)})") from error

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # Made late: it must not meet a damaged step before `newest_good` has.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Policy(self._to_keep),
            cleanup_tmp_directories=True,  # what a killed process left half written
            enable_async_checkpointing=True,
            lightweight_initialize=True,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self._folder.resolve(), options=options, item_handlers=handlers)

    def _close(self) -> None:
        manager = self.__dict__.pop("_manager", None)
        if manager is not None:
            manager.close()

    def _seal(self) -> None:
        """Called by orbax in one process when all have written everything, before the folder gets its final name."""
        assert self._saving is not None
        step, scores = self._saving
        (unfinished,) = self._folder.glob(f"{step}{ocp.utils.TMP_DIR_SUFFIX}*")
        write_manifest(unfinished, scores, step)

    def set_aside(self, since: int) -> int | None:
        """Renames steps whose weights are those of a divergence to `diverged-STEP`, if there is one from before.

        Args:
          since: Number of the first step with such weights.

        Returns:
          The newest step before, from which the next start goes on; None if there is none, and nothing is renamed.

        Raises:
          RunError: If a step cannot be renamed.
        """
        self._close()
        return decided_by_the_first_process(lambda: set_aside_diverged(self._folder, since))

    def _read_scores(self, step: int) -> Mapping[str, float]:
        with contextlib.suppress(FileError):
            manifest = read_manifest(self._folder / str(step))
            return manifest.scores if manifest else {}
        return {}

    def _best_of(self, steps: Sequence[int]) -> int | None:
        if not self._best:
            return None
        name, which = self._best
        scores = {step: self._scores.get(step, {}).get(name, np.nan) for step in sorted(steps)}
        scored = {step: float(score) for step, score in scores.items() if np.isfinite(score)}
        return (max if which == "max" else min)(scored, key=lambda step: scored[step], default=None)

    def _newest_proven(self, steps: Sequence[int]) -> int | None:
        """The newest step after which an update was not left out; the newest of all where that is not known."""
        newest = max(steps)
        skipped = {step: self._scores.get(step, {}).get("skipped") for step in steps}
        for step in sorted(steps, reverse=True):
            then, now = skipped[step], skipped[newest]
            if then is None or now is None or newest - step > now - then:
                return step
        return None

    def _to_keep(self, steps: Sequence[int]) -> set[int | None]:
        return {*sorted(steps)[-self._keep :], self._best_of(steps), self._newest_proven(steps)}


class _Policy(ocp.checkpoint_managers.PreservationPolicy):
    """Asked after every save, with the new step among the others; what it gives up goes when that step is complete."""

    def __init__(self, to_keep: Callable[[Sequence[int]], set[int | None]]):
        self._to_keep = to_keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        kept = self._to_keep([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _reason(error: Exception) -> str:
    """Returns why a checkpoint could not be written; of a full disk tensorstore says so at the end of a long line."""
    full = os.strerror(errno.ENOSPC)
    return f"{full}; make room, then start again" if full in str(error) else _first_line(error)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
