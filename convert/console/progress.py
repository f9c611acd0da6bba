"""Shows the progress of a long command: a bar on a terminal, lines in a log file or a pipe."""

import sys
import time
from types import TracebackType

_SECONDS = 15.0  # between two lines


class Progress:
    """Counts images on standard error, in a `with` block.

    Attributes:
      done: Number of images that are done.
    """

    def __init__(self, total: int, done: int = 0):
        """Creates the display, which `with` starts.

        Args:
          total: Number of all images.
          done: Number of images that an earlier run has done.
        """
        self.done = done
        self._total, self._before = total, done
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=total, completed=done, speed="")

    def __enter__(self) -> "Progress":
        self._begun = self._said = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, count: int) -> None:
        """Adds to the number of images that are done, and shows it."""
        self.done += count
        now = time.monotonic()
        speed = f"{(self.done - self._before) / max(now - self._begun, 1e-9):.3g} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, speed=speed)
        elif now - self._said >= _SECONDS:
            self._said = now
            print(f"{self.done:,} of {self._total:,} images, {speed}", file=sys.stderr, flush=True)
