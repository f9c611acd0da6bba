"""Shows the progress of a long command: a bar on a terminal, lines in a log file or a pipe."""

import sys
import time
from typing import Any, Self, TextIO

from flax_vae.convert.console.terminal import escaped

SECONDS = 15.0  # between two lines


class Progress:
    """Counts images, or other units, in a `with` block; the one display of all commands.

    Attributes:
      done: Number of units that are done.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        unit: str = "images",
        *,
        stream: TextIO | None = None,
        seconds: float = SECONDS,
        quiet: bool = False,
    ):
        """Creates the display, which `with` starts.

        Args:
          total: Number of all units.
          done: Number of units that an earlier run has done.
          unit: Name of the units, in the plural.
          stream: Stream to write to; None uses standard error.
          seconds: Time between two lines where there is no bar; infinite for no lines.
          quiet: Whether nothing is shown.
        """
        self.done = done
        self._total, self._before, self._unit, self._seconds, self._quiet = total, done, unit, seconds, quiet
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._note = ""

    def __enter__(self) -> Self:
        self._begun = self._said = time.monotonic()
        if self._stream.isatty() and not self._quiet:
            from rich.console import Console  # imported only for a terminal
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(file=self._stream), transient=True)
            self._task = self._bar.add_task("", total=self._total, completed=self.done, text=self._unit)
            self._bar.start()
        return self

    def __exit__(self, *unused: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, count: int, note: str | None = None) -> None:
        """Adds to the number of units that are done, and shows it.

        Args:
          count: Number of units.
          note: Text to show beside the bar from now on; None keeps the last one.
        """
        self.done += count
        self._note = self._note if note is None else note
        now = time.monotonic()
        speed = f"{self._unit}, {(self.done - self._before) / max(now - self._begun, 1e-9):.3g} {self._unit}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, text=f"{speed}  {self._note}")
        elif now - self._said >= self._seconds:
            self._said = now
            self.line(f"{self.done:,} of {self._total:,} {speed}")

    def line(self, text: str) -> None:
        """Prints a line, above the bar if there is one.

        Args:
          text: Line without its end.
        """
        if self._bar is not None:
            self._bar.console.print(escaped(text), markup=False, highlight=False)
        elif not self._quiet:
            print(text, file=self._stream, flush=True)
