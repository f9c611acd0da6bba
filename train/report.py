"""What a run says: a progress bar on a terminal, plain lines elsewhere, and `metrics.jsonl` for programs."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.files import new_file

_SHOWN = ("loss", "l1", "mse", "charbonnier", "kl", "lpips", "d_loss", "d_weight", "grad_norm", "learning_rate")


class Metrics:
    """`metrics.jsonl`: one object per line, `step` first, never two lines for the same step.

    What a run wrote after the checkpoint that it resumes from is cut off, for it will be written again.
    """

    def __init__(self, path: Path, resumed_step: int, *, write: bool = True):
        """Opens the file, without what lies beyond `resumed_step`.

        Args:
          path: of the file.
          resumed_step: updates done.
          write: False in all processes but the first.
        """
        self._path, self._write = path, write
        if not write:
            return
        rows = [row for row in read_metrics(path) if row["step"] <= resumed_step]
        with new_file(path, force=True) as file:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def write(self, step: int, scores: Mapping[str, float]) -> None:
        """Adds a line; numbers that are not finite, for which JSON has no word, are left out."""
        if self._write:
            finite = {name: score for name, score in scores.items() if math.isfinite(score)}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines; the last one may have been cut off by a crash."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class Reporter:
    """Talks to a person on standard output."""

    def __init__(self, start: int, steps: int, *, quiet: bool = False):
        """Prepares for the updates `start + 1` to `steps`; all but the first of several processes are quiet."""
        self._quiet = quiet
        self._steps, self._start = steps, start
        self._bar: Any = None
        self._task: Any = None
        self._last = (start, time.monotonic())

    def __enter__(self) -> "Reporter":
        if sys.stdout.isatty() and not self._quiet:
            from rich import progress  # only where there is a terminal to draw on

            self._bar = progress.Progress(
                progress.TextColumn("[bold]step"),
                progress.MofNCompleteColumn(),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[scores]}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(),
            )
            self._task = self._bar.add_task("", total=self._steps, completed=self._start, scores="compiling")
            self._bar.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if self._quiet:
            return
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def advance(self, step: int) -> None:
        """Moves the bar to `step` updates done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Shows the scores of update `step`."""
        (before, since), now = self._last, time.monotonic()
        left = (now - since) / max(step - before, 1) * (self._steps - step)  # at the pace of late
        self._last = (step, now)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, scores=f"loss {scores['loss']:.4f}")
            return
        numbers = "  ".join(f"{name} {scores[name]:.4g}" for name in _SHOWN if name in scores)
        if scores.get("skipped"):
            numbers += f"  skipped {scores['skipped']:.0f}"
        self.line(f"step {step:>{len(str(self._steps))}}/{self._steps}  {numbers}  about {left:.0f} s left")
