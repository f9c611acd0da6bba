"""Measures how fast a run is: images and operations per second, and the time that is left."""

import time

from flax_vae.train.devices import StepOperations


class Speed:
    """Measures updates without the first one, which is compiled, and without evaluating and saving between updates."""

    def __init__(self, batch_size: int, count: int, peak: float | None, gan_start: int = 0):
        """Prepares; `skip` of the first update, or `begin`, starts measuring.

        Args:
          batch_size: Images in a batch.
          count: Number of devices.
          peak: Peak of one device in operations per second; None if unknown.
          gan_start: Number of updates before the discriminator takes part.
        """
        self._batch_size, self._count, self._peak, self._gan_start = batch_size, count, peak, gan_start
        self._step: int | None = None  # of the last time that was read
        self._when = 0.0
        self._updates = self._active = self._all_updates = 0
        self._seconds = 0.0
        self._pauses: list[float] = []

    def begin(self, step: int) -> None:
        """Starts measuring at the end of update `step`, after which the run paused to evaluate or to save.

        Args:
          step: Number of updates.
        """
        now = time.monotonic()
        if self._step is not None:
            self._pauses.append(now - self._when)
        self._step, self._when = step, now

    def skip(self, step: int) -> None:
        """Leaves out the time since the last call, as that of compiling a program, which does not come again.

        Args:
          step: Number of updates.
        """
        self._step, self._when = step, time.monotonic()

    def add(self, step: int) -> None:
        """Adds the updates up to `step`, whose scores have been computed.

        Args:
          step: Number of updates.
        """
        if self._step is None:
            return
        now, updates = time.monotonic(), step - self._step
        self._updates += updates
        self._all_updates += updates
        self._active += max(0, step - max(self._step, self._gan_start))
        self._seconds += now - self._when
        self._step, self._when = step, now

    def seconds_left(self, updates: int) -> float | None:
        """Returns the time that a number of further updates take, with pauses as often as before.

        The first pause is not extrapolated, because the evaluation is compiled in it.

        Args:
          updates: Number of updates that are left.

        Returns:
          Seconds; None before the second update.
        """
        if not self._updates:
            return None
        seconds = updates * self._seconds / self._updates
        later = self._pauses[1:]
        if later:
            seconds += updates * len(self._pauses) / self._all_updates * sum(later) / len(later)
        return seconds

    def read(self, operations: StepOperations | None) -> dict[str, float]:
        """Returns the speed of the updates since the last call; nothing if there are none.

        Args:
          operations: Operations of one update on all devices, if known.

        Returns:
          `images_per_second`; `tflops_per_second` of all devices, in 10^12; `mfu`, the share of the peak.
        """
        updates, active, seconds = self._updates, self._active, self._seconds
        if not updates:
            return {}
        self._updates = self._active = 0
        self._seconds = 0.0
        speed = {"images_per_second": self._batch_size * updates / seconds}
        if operations is not None:
            rate = (active * operations.active + (updates - active) * operations.inactive) / seconds
            speed["tflops_per_second"] = rate / 1e12
            if self._peak is not None:
                speed["mfu"] = rate / (self._count * self._peak)
        return speed
