"""Saves and restores checkpoints of the state; the only module that uses orbax for it.

Each checkpoint is written under a temporary name, gets a manifest of its files (`flax_vae.train.run.manifest`) and is
then renamed; only then is an older one deleted.  A process that is killed at any moment therefore leaves complete
checkpoints behind.  Later damage on disk is detected before a checkpoint is restored.

In a bucket, where nothing can be renamed, a checkpoint has its final name at once, and its manifest is written last.
"""

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src.futures import future

from flax_vae.convert.errors import FileError, shorten_sentences
from flax_vae.convert.files import MANIFEST, exists_at, is_address, read_manifest
from flax_vae.train.config import TrainConfig
from flax_vae.train.errors import RunError
from flax_vae.train.run.manifest import write_manifest
from flax_vae.train.run.recovery import (
    decided_by_the_first_process,
    find_newest_good,
    find_steps,
    remove_step,
    remove_unsealed,
    require_whole,
    set_aside_diverged,
)
from flax_vae.train.run.tree_spec import describe_tree, require_restorable, tree_differences

_SHOW = 3  # leaves named in one error
_CENTURY = 100 * 365 * 24 * 3600  # seconds


class Checkpoints:
    """Checkpoints of one run, by step, the number of completed updates.

    In a run of several processes, every process calls every method, on one file system.

    Attributes:
      problems: A sentence for each step that `newest_good` could not use.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        best: tuple[str, Literal["max", "min"]] | None = None,
        require_held: Callable[[], None] = lambda: None,
    ):
        """Prepares the folder, which is created at the first save.

        One further step is always kept: the newest that a later finite update has shown to be good.  A run that
        diverges and keeps saving therefore never deletes it.

        Args:
          folder: Folder of the checkpoints.
          keep: Number of latest steps to keep.
          best: Name of a score, and whether its maximum or minimum is best; that step is kept too.
          require_held: Function that raises if another trainer has taken the run over; called before a step in a bucket
            is sealed.

        Raises:
          RunError: If `keep` is less than 1.
        """
        if keep < 1:
            raise RunError(f"keep={keep} would keep no checkpoint; expected at least 1")
        self.problems: list[str] = []
        self._folder, self._keep, self._best, self._require_held = folder, keep, best, require_held
        self._good: set[int] = set()  # verified in this process
        self._saving: tuple[int, Mapping[str, float]] | None = None
        self._scores = {step: self._read_scores(step) for step in find_steps(self._folder)}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        try:
            self._close()  # waits for background writes
        except Exception as error:
            _end_waiting_threads()
            if kind is None:  # otherwise the exception that is being raised is the one to report
                raise RunError(
                    f"{self._folder}: the last checkpoint could not be written ({_reason(error)})", path=self._folder
                ) from error

    @property
    def latest_step(self) -> int | None:
        """Newest step, complete or not, or None."""
        if "_manager" in self.__dict__:
            return self._manager.latest_step()
        return max(find_steps(self._folder), default=None)

    @property
    def best_step(self) -> int | None:
        """Step with the best score, the earliest of equals; None if none has a score."""
        return self._best_of(find_steps(self._folder))

    def scores(self, step: int) -> Mapping[str, float]:
        """Returns the numbers that were saved with a step; none if there is no such step.

        Args:
          step: Number of updates.
        """
        return self._scores.get(step, {})

    def newest_good(self) -> int | None:
        """Returns the newest intact step; to be called before the first save.

        Newer steps that are not intact are renamed (`corrupt-STEP`, or `unverified-STEP` without a manifest), never
        deleted, and described in `problems`.

        Returns:
          The step, or None if there is none.

        Raises:
          RunError: If there are steps and all are damaged or unverified.  None is renamed then; otherwise the next
            start would find an empty folder and begin from scratch.
        """
        self._close()
        step = decided_by_the_first_process(lambda: find_newest_good(self._folder, self.problems))
        self._scores = {step: self._read_scores(step) for step in find_steps(self._folder)}
        if step is not None:
            self._good.add(step)
        return step

    def restore(self, step: int, like: Any) -> Any:
        """Returns the state after `step` updates.

        Args:
          step: Existing step, from `newest_good()` or `best_step` for example.
          like: Tree with the shapes, dtypes and shardings to restore to.

        Raises:
          RunError: If it is damaged, or holds other leaves, shapes or dtypes.
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
                f"{path} cannot be restored ({type(error).__name__}: {_first_line(error)}); its files are intact, "
                "so keep it: check the free memory and the versions of jax and orbax, then start again",
                path=path,
            ) from error
        raise RunError(
            f"{path} cannot be restored, because it belongs to another run: {shorten_sentences(wrong, _SHOW)}; "
            "use the settings that it was written with, or another workdir",
            path=path,
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
        """Copies the state and saves it in the background.

        Args:
          step: Step of the state; an existing step is not written again.
          state: Tree of jax arrays and Python numbers.
          config: Settings of the run.
          wait: Whether to wait until the checkpoint is complete on disk.
          scores: Scores of the model; the one that `best` names decides which step is kept, and `skipped` is the number
            of updates skipped so far.

        Raises:
          RunError: If this or the previous checkpoint could not be written, for example because the disk is full, or if
            the state holds leaves that could not be restored.
        """
        require_restorable(state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(config.to_dict()))
        try:
            with jax.transfer_guard("allow"):  # saving has to read the state
                if step != self.latest_step:
                    self._manager.wait_until_finished()
                    self._saving = (step, scores or {})
                    self._scores[step] = scores or {}
                    if not self._manager.save(step, args=args):
                        raise RunError(
                            f"{self._folder} holds step {self.latest_step}, which is later", path=self._folder
                        )
                if wait:
                    self._manager.wait_until_finished()
        except Exception as error:
            failed = self._saving[0] if self._saving else step  # the one before, if that was still being written
            self._scores.pop(failed, None)
            _end_waiting_threads()
            raise RunError(
                f"{self._folder}: no checkpoint of step {failed} ({_reason(error)})", path=self._folder
            ) from error

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # Created late, so that damaged steps are renamed by `newest_good` first.
        remote = is_address(self._folder)
        if remote:
            decided_by_the_first_process(lambda: remove_unsealed(self._folder))
        options = ocp.CheckpointManagerOptions(
            # Orbax deletes in a bucket in any order, and only with the right to read the bucket's own settings.
            preservation_policy=_Policy(self._to_keep if not remote else lambda steps: {*steps}),
            cleanup_tmp_directories=not remote,  # incomplete folders of a killed process
            enable_async_checkpointing=True,
            lightweight_initialize=True,
            async_options=ocp.options.AsyncOptions(
                timeout_secs=_patience(), post_finalization_callback=None if remote else self._seal
            ),
            temporary_path_class=_sealed_last(self._folder, self._seal_in_bucket) if remote else None,
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
        folder = self._folder if remote else self._folder.resolve()
        return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)

    def _close(self) -> None:
        manager = self.__dict__.pop("_manager", None)
        if manager is not None:
            manager.close()

    def _seal(self) -> None:
        """Writes the manifest; called by orbax in one process after all have written, before the final rename."""
        assert self._saving is not None
        step, scores = self._saving
        pattern = f"{step}{ocp.utils.TMP_DIR_SUFFIX}*"
        unfinished = next(self._folder.glob(pattern), None)
        if unfinished is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._folder / pattern))
        write_manifest(unfinished, scores, step)

    def _seal_in_bucket(self) -> None:
        """Writes the manifest, and removes the steps that are kept no longer; called in one process after orbax."""
        assert self._saving is not None
        step, scores = self._saving
        self._require_held()
        write_manifest(self._folder / str(step), scores, step)
        steps = find_steps(self._folder)
        for old in set(steps) - self._to_keep(steps):
            remove_step(self._folder / str(old))

    def set_aside(self, since: int) -> int | None:
        """Renames steps with diverged weights to `diverged-STEP`, if there is an older step.

        Args:
          since: First step with such weights.

        Returns:
          The newest older step, from which the next start resumes; None if there is none, and then nothing is renamed.

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
        """Returns the newest step that was followed by a finite update, or the newest of all if that is unknown."""
        newest = max(steps)
        skipped = {step: self._scores.get(step, {}).get("skipped") for step in steps}
        for step in sorted(steps, reverse=True):
            then, now = skipped[step], skipped[newest]
            if then is None or now is None or newest - step > now - then:
                return step
        return None

    def _to_keep(self, steps: Sequence[int]) -> set[int | None]:
        return {*sorted(steps)[-self._keep :], self._best_of(steps), self._newest_proven(steps)}


def _patience() -> int:
    """Returns the seconds after which orbax gives a checkpoint up; one process, which waits for no other, never does.

    Orbax measures them by the clock of the day, so its twenty minutes are over as soon as that clock is set forward, or
    the machine has slept, while a checkpoint is written.  Several processes keep them, for one of them may have ended.
    """
    return _CENTURY if jax.process_count() == 1 else ocp.options.AsyncOptions.timeout_secs


def _end_waiting_threads() -> None:
    """Ends the threads of a save that failed in a single process; Python would wait for them at exit.

    If the folder of an item cannot be created, orbax's threads that were to write into it wait until they run out of
    patience.  Only orbax itself can name them and what they wait for.  With several processes it would be the others'
    signal too, and the patience is short.
    """
    if jax.process_count() > 1:
        return
    waiting = [thread for thread in threading.enumerate() if isinstance(thread, future._SignalingThread)]
    for thread in waiting:
        thread.cancel()
    for thread in waiting:
        future.set_signals(thread._receive_signals, operation_id=thread._operation_id)


def _sealed_last(folder: Path, seal: Callable[[], None]) -> type[ocp.path.atomicity_types.TemporaryPath]:
    """Returns the class by which orbax writes a step in a bucket: under its final name, sealed when it is complete."""

    class SealedPath(ocp.path.atomicity.CommitFileTemporaryPath):
        async def finalize(self) -> None:
            await super().finalize()
            if os.fspath(self.get_final().parent) == os.fspath(folder):  # and not that of an item inside the step
                await asyncio.to_thread(seal)

        @classmethod
        async def validate_final(cls, final_path: Any) -> None:
            if not await asyncio.to_thread(exists_at, final_path / MANIFEST):
                raise ocp.path.atomicity.ValidationError(f"{final_path} has no {MANIFEST}")

    return SealedPath


class _Policy(ocp.checkpoint_managers.PreservationPolicy):
    """Decides after every save which steps to keep; orbax deletes the others when the new step is complete."""

    def __init__(self, to_keep: Callable[[Sequence[int]], set[int | None]]):
        self._to_keep = to_keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        kept = self._to_keep([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _reason(error: Exception) -> str:
    """Returns why a checkpoint could not be written, without the settings at the end of tensorstore's message."""
    full, gone = os.strerror(errno.ENOSPC), os.strerror(errno.ENOENT)
    if full in str(error):
        return f"{full}; make room, then start again"
    if gone in str(error) or "NOT_FOUND" in str(error):
        return f"{gone}: files were deleted while it was being written; start again"
    return _first_line(error).partition(" [tensorstore_spec=")[0]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
