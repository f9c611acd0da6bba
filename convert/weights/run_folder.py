"""Finds the exported model in the directory of a training run."""

from pathlib import Path

from flax_vae.convert.errors import FileError
from flax_vae.convert.files import is_number, read_object
from flax_vae.convert.weights.folder import CONFIG, WEIGHTS

EXPORT, CHECKPOINTS, METRICS = "export", "checkpoints", "metrics.jsonl"


def is_run(folder: Path) -> bool:
    """Returns whether a folder is the directory of a training run and not itself a model."""
    if (folder / WEIGHTS).exists():
        return False
    return (folder / METRICS).is_file() or _is_model(folder / EXPORT) or bool(_steps(folder))


def find_export(run: Path) -> Path:
    """Returns the model folder that a run exported.

    Raises:
      FileError: If the run has not ended, or was continued after the export; the message lists alternatives.
    """
    export, steps = run / EXPORT, _steps(run)
    newest = run / CHECKPOINTS / str(steps[-1]) if steps else None
    if not _is_model(export):
        advice = f", or name a checkpoint: {newest}" if newest else ""
        raise FileError(f"{run} has no {EXPORT}/ yet; let the run end{advice}")
    asked = _asked_steps(run)
    if newest is not None and asked is not None and steps[-1] < asked:
        raise FileError(
            f"{run} has done {steps[-1]} of {asked} steps, and {export} was written before it was continued; let the "
            f"run end, or name one of them: {export} or {newest}"
        )
    return export


def _steps(run: Path) -> list[int]:
    """Returns the numbers of the run's checkpoints, complete or not."""
    folder = run / CHECKPOINTS
    return sorted(int(entry.name) for entry in folder.iterdir() if is_number(entry.name)) if folder.is_dir() else []


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _asked_steps(run: Path) -> int | None:
    """Returns the number of steps of the whole run, or None if its configuration does not give it."""
    try:
        steps = read_object(run / CONFIG).get("steps")
    except (OSError, ValueError):  # reported when the run is continued
        return None
    return steps if isinstance(steps, int) else None
