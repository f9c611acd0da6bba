"""Which checkpoint to go on from: the newest that is as it was written."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from flax_vae.convert.files import MANIFEST, find_damage, is_number, note_on_number
from flax_vae.train.errors import RunError

_FAILED, _NONE = -2, -1


def find_steps(folder: Path) -> list[int]:
    """The steps under their final names, whole or not, the earliest first."""
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if is_number(name))


def find_newest_good(folder: Path, problems: list[str]) -> int | None:
    """The newest step that is as it was written, or None if there is no step at all.

    Newer ones are renamed, `corrupt-STEP`, or `unverified-STEP` if they have no manifest.

    Args:
      folder: of the checkpoints.
      problems: gains a sentence for each step that cannot be restored, and for one whose number cannot be checked.

    Raises:
      RunError: if there are steps and none is good; then nothing is renamed, lest the next start finds an empty folder
        and begins anew.
    """
    bad: dict[int, str] = {}
    for step in reversed(find_steps(folder)):
        damage = _damage(folder / str(step))
        if damage is None:
            for newer, sentence in bad.items():
                kind = "corrupt" if (folder / str(newer) / MANIFEST).exists() else "unverified"
                problems.append(f"{sentence}; it is now called {_move_aside(folder / str(newer), kind).name}")
            note = note_on_number(folder / str(step))
            problems.extend([note] if note else [])
            return step
        bad[step] = f"{folder / str(step)} cannot be restored: {damage}"
    if not bad:
        return None
    problems.extend(bad.values())
    raise RunError(
        f"no checkpoint of this run can be trusted: {'; '.join(bad.values())}. Put back a copy; or move them away to "
        f"start anew; or accept one without a {MANIFEST} as it is: flax_vae.train.run.manifest.write_manifest(FOLDER)"
    )


def set_aside_diverged(folder: Path, since: int) -> int | None:
    """Renames the steps from `since` on to `diverged-STEP`, so that the next start goes on from the one before.

    Args:
      folder: of the checkpoints.
      since: number of the first step with weights that gave no finite numbers.

    Returns:
      The newest step that is older, or None if there is none; then nothing is renamed.

    Raises:
      RunError: if a step cannot be renamed.
    """
    steps = find_steps(folder)
    older = [step for step in steps if step < since]
    if not older:
        return None
    for step in steps[len(older) :]:
        _move_aside(folder / str(step), "diverged")
    return older[-1]


def require_whole(folder: Path, step: int) -> int:
    """Returns the step if it is as it was written.

    Raises:
      RunError: if it is not.
    """
    damage = _damage(folder / str(step))
    if damage is not None:
        raise RunError(f"{folder / str(step)} cannot be restored: {damage}; take another step")
    return step


def decided_by_the_first_process(decide: Callable[[], int | None]) -> int | None:
    """What process 0 decides, in every process; an error there is an error in all, so that none waits for it.

    Raises:
      RunError: in the others, if process 0 raised anything.
    """
    if jax.process_count() == 1:
        return decide()
    step, error = _FAILED, None
    if jax.process_index() == 0:
        try:
            decision = decide()
            step = _NONE if decision is None else decision
        except Exception as raised:  # whatever it is, the others must hear of it
            error = raised
    with jax.transfer_guard("allow"):
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    if error is not None:
        raise error
    if step == _FAILED:
        raise RunError("process 0 found no checkpoint that can be restored; its message says why")
    return None if step == _NONE else step


def _damage(path: Path) -> str | None:
    if not path.is_dir():
        return "there is no such step"
    return find_damage(path)


def _move_aside(path: Path, kind: str) -> Path:
    target, count = path.with_name(f"{kind}-{path.name}"), 1
    while target.exists():
        count += 1
        target = path.with_name(f"{kind}-{path.name}-{count}")
    try:
        return path.rename(target)
    except OSError as error:
        raise RunError(f"{path} is {kind} and cannot be renamed ({error}); move it away") from error
