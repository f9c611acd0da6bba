"""Reports metrics: lines with scores, a progress bar on a terminal, and `metrics.jsonl` for programs."""

import contextlib
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax_vae.convert.console import Progress
from flax_vae.convert.files import is_address, read_at, write_at
from flax_vae.train.errors import RunError
from flax_vae.train.report.metrics_lines import read_lines, step_of, to_line

_SHOWN = ("loss", "l1", "mse", "charbonnier", "kl", "lpips", "d_loss", "d_weight", "grad_norm", "learning_rate")
_FLUSH_SECONDS = 30  # between two writes of the whole file into a bucket


class Metrics:
    """Writes `metrics.jsonl`: one object per line, `step` first, one line per step.

    On resume, lines after the step of the checkpoint are removed, because they are written again.  Damaged lines are
    moved to `metrics.jsonl.damaged`.  In a bucket, where nothing can be appended, the file is written whole, at
    intervals and by `flush`.

    Attributes:
      problems: A sentence about damaged lines, if there were any.
    """

    def __init__(self, path: Path, resumed_step: int, *, write: bool = True):
        """Opens the file and removes lines after `resumed_step`.

        Args:
          path: Path of the file.
          resumed_step: Number of updates done.
          write: Whether this process writes; False in all processes but the first.

        Raises:
          RunError: If the file cannot be read or written.
        """
        self._path, self._write = path, write
        self.problems: list[str] = []
        self._lines: list[str] | None = None  # of a file in a bucket
        self._flushed = time.monotonic()
        if not write:
            return
        lines = read_lines(path)
        damaged = list(lines.damaged)
        begun = step_of(lines.unfinished)
        if lines.unfinished and (begun is None or begun <= resumed_step):  # later steps are written again
            damaged.append(lines.unfinished)
        try:
            if damaged:
                self._set_aside(damaged, len(lines.rows))
            kept = [to_line(row) for row in lines.rows if row["step"] <= resumed_step]
            write_at(path, "".join(kept).encode())
            self._lines = kept if is_address(path) else None
        except OSError as error:
            raise RunError(
                f"{path} cannot be written ({error.strerror or error}); correct that, then start again"
            ) from error

    def write(self, step: int, scores: Mapping[str, float]) -> None:
        """Adds a line; values that are not finite are left out, because JSON cannot express them.

        Args:
          step: Number of updates.
          scores: Values by name.
        """
        if not self._write:
            return
        line = to_line({"step": step, **scores})
        if self._lines is None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
            return
        self._lines.append(line)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is not written yet, of a file in a bucket: before a checkpoint that these lines precede.

        Raises:
          AddressError: If it cannot be written.
        """
        if self._write and self._lines is not None:
            write_at(self._path, "".join(self._lines).encode())
            self._flushed = time.monotonic()

    def _set_aside(self, damaged: list[bytes], good: int) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged")
        before = b""
        with contextlib.suppress(FileNotFoundError):
            before = read_at(aside)
        write_at(aside, before + b"".join(line + b"\n" for line in damaged))
        self.problems.append(
            f"{self._path}: {len(damaged)} of {len(damaged) + good} lines were damaged, or repeated a step; "
            f"moved to {aside.name}"
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the intact rows, by step.

    Args:
      path: Path of `metrics.jsonl`.

    Raises:
      RunError: If the file cannot be read.
    """
    return read_lines(path).rows


class Reporter(Progress):
    """Prints scores on standard output: a line for each record of them, or the loss beside the bar of a terminal.

    The lines are records, which a log keeps; that is why they come with the steps, and not every few seconds.
    """

    def __init__(self, start: int, steps: int, *, quiet: bool = False):
        """Prepares for the updates `start + 1` to `steps`; all processes but the first are quiet.

        Args:
          start: Number of updates that are done.
          steps: Number of all updates.
          quiet: Whether nothing is shown.
        """
        super().__init__(steps, start, "steps", stream=sys.stdout, seconds=math.inf, quiet=quiet)
        self._advanced = False

    def advance(self, step: int) -> None:
        """Moves the bar to `step` updates done.  Timing starts after the first update, which includes compilation.

        Args:
          step: Number of updates.
        """
        if not self._advanced:
            self._advanced, self._begun, self._before = True, time.monotonic(), step
        self.add(step - self.done)

    def scores(self, step: int, scores: Mapping[str, float], seconds_left: float | None = None) -> None:
        """Prints the scores of update `step`, and the time that is left, if known.

        Args:
          step: Number of updates.
          scores: Values by name.
          seconds_left: Time that is left.
        """
        if self._bar is not None:
            self.add(step - self.done, f"loss {scores['loss']:.4f}")
            return
        numbers = "  ".join(f"{name} {scores[name]:.4g}" for name in _SHOWN if name in scores)
        if scores.get("skipped"):
            numbers += f"  skipped {scores['skipped']:.0f}"
        left = "" if seconds_left is None else f"  about {seconds_left:.0f} s left"
        self.line(f"step {step:>{len(str(self._total))}}/{self._total}  {numbers}{left}")
