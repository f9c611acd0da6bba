"""Finds the newest intact checkpoint to resume from."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from flax_vae.convert.files import (
    MANIFEST,
    copy_at,
    exists_at,
    find_damage,
    is_address,
    is_number,
    list_at,
    note_on_number,
    remove_at,
)
from flax_vae.train.errors import RunError

_FAILED, _NONE = -2, -1


def find_steps(folder: Path) -> list[int]:
    """Returns the steps under their final names, intact or not, the earliest first.

    In a bucket, a folder without a manifest is not a step.
    """
    return [step for step, sealed in _list_steps(folder) if sealed]


def _list_steps(folder: Path) -> list[tuple[int, bool]]:
    """Returns the folders that are called by a number, and whether they are steps."""
    steps = sorted(int(entry.name) for entry in list_at(folder) if entry.folder and is_number(entry.name))
    return [(step, not is_address(folder) or exists_at(folder / str(step) / MANIFEST)) for step in steps]


def remove_unsealed(folder: Path) -> None:
    """Removes what interrupted processes left of steps in a bucket; elsewhere, orbax does it."""
    if is_address(folder):
        for step, sealed in _list_steps(folder):
            if not sealed:
                remove_at(folder / str(step), recursive=True)


def remove_step(path: Path) -> None:
    """Removes a step in a bucket, its manifest first, so that what an interrupted process leaves is not a step."""
    remove_at(path / MANIFEST)
    remove_at(path, recursive=True)


def find_newest_good(folder: Path, problems: list[str]) -> int | None:
    """Returns the newest intact step, or None if the folder holds none.

    Newer steps are renamed: `corrupt-STEP`, or `unverified-STEP` if they have no manifest.

    Args:
      folder: Folder of the checkpoints.
      problems: List that gains a sentence for each step that cannot be restored, and for one whose number cannot be
        checked.

    Raises:
      RunError: If there are steps and none is intact.  None is renamed then; otherwise the next start would find an
        empty folder and begin from scratch.
    """
    bad: dict[int, str] = {}
    for step in reversed(find_steps(folder)):
        damage = _damage(folder / str(step))
        if damage is None:
            for newer, sentence in bad.items():
                kind = "corrupt" if exists_at(folder / str(newer) / MANIFEST) else "unverified"
                problems.append(f"{sentence}; it is now called {_move_aside(folder / str(newer), kind).name}")
            note = note_on_number(folder / str(step))
            problems.extend([note] if note else [])
            return step
        bad[step] = f"{folder / str(step)} cannot be restored: {damage}"
    if not bad:
        return None
    problems.extend(bad.values())
    raise RunError(
        f"no checkpoint of this run is intact: {'; '.join(bad.values())}. Restore a copy; or move them away to "
        f"start anew; or accept one without a {MANIFEST} as it is: flax_vae.train.run.manifest.write_manifest(FOLDER)"
    )


def set_aside_diverged(folder: Path, since: int) -> int | None:
    """Renames the steps from `since` on to `diverged-STEP`, so that the next start resumes from the one before.

    Args:
      folder: Folder of the checkpoints.
      since: First step with weights that gave values that are not finite.

    Returns:
      The newest older step, or None if there is none; then nothing is renamed.

    Raises:
      RunError: If a step cannot be renamed.
    """
    steps = find_steps(folder)
    older = [step for step in steps if step < since]
    if not older:
        return None
    for step in steps[len(older) :]:
        _move_aside(folder / str(step), "diverged")
    return older[-1]


def require_whole(folder: Path, step: int) -> int:
    """Returns the step after checking that it is intact.

    Raises:
      RunError: If it is not.
    """
    damage = _damage(folder / str(step))
    if damage is not None:
        raise RunError(f"{folder / str(step)} cannot be restored: {damage}; take another step")
    return step


def decided_by_the_first_process(decide: Callable[[], int | None]) -> int | None:
    """Returns the decision of process 0 in every process; an error in it is raised in all processes.

    Raises:
      RunError: In the other processes, if process 0 raised any error.
    """
    if jax.process_count() == 1:
        return decide()
    step, error = _FAILED, None
    if jax.process_index() == 0:
        try:
            decision = decide()
            step = _NONE if decision is None else decision
        except Exception as raised:  # every failure must be reported to the other processes
            error = raised
    with jax.transfer_guard("allow"):
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if error is not None:
        raise error
    if step == _FAILED:
        raise RunError("process 0 found no checkpoint that can be restored; see its message")
    return None if step == _NONE else step


def _damage(path: Path) -> str | None:
    if not exists_at(path):
        return "the step does not exist"
    return find_damage(path)


def _move_aside(path: Path, kind: str) -> Path:
    target, count = path.with_name(f"{kind}-{path.name}"), 1
    while exists_at(target):
        count += 1
        target = path.with_name(f"{kind}-{path.name}-{count}")
    try:
        if not is_address(path):
            return path.rename(target)
        for entry in list_at(path, recursive=True):
            copy_at(path / entry.name, target / entry.name)
        remove_step(path)
        return target
    except OSError as error:
        raise RunError(f"{path} is {kind} and cannot be renamed ({error}); move it away", path=path) from error
