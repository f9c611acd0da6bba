"""Requests to save and stop: SIGTERM or SIGUSR1 from a scheduler, Ctrl-C from the user."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Sent by SLURM's --signal=USR1@120; handled like SIGTERM.  Windows has no SIGUSR1.
SAVE_SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR1", None)


class StopRequest:
    """The signal, if any, that requested a stop after the current step.

    Attributes:
      signum: Number of the signal, or None.
    """

    signum: signal.Signals | None = None

    def save_and_end(self) -> None:
        """Requests a stop, as SIGTERM does."""
        self.signum = self.signum or signal.SIGTERM

    def asked(self, step: int) -> bool:
        """Returns whether the run stops after this step.

        Args:
          step: Number of updates.
        """
        return self.signum is not None


class CommonStopRequest(StopRequest):
    """Stop request of several processes: SIGTERM to one of them stops all after one common step.

    JAX then owns the handler of the signal, and installing another would remove it.  The processes agree on the step in
    the background, slightly ahead, so that asking costs nothing.
    """

    def save_and_end(self) -> None:  # noqa: D102 - as in StopRequest
        os.kill(os.getpid(), signal.SIGTERM)  # handled by JAX, which notifies the others

    def asked(self, step: int) -> bool:  # noqa: D102 - as in StopRequest
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(step):
            self.signum = signal.SIGTERM
        return self.signum is not None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request and restores the default for the second; SIGUSR1 is as SIGTERM.

    Only the main thread can install handlers; in other threads there are no requests, unless JAX handles SIGTERM.

    Yields:
      Request, which is empty until a signal comes.
    """
    import jax

    several = jax.process_count() > 1
    request = CommonStopRequest() if several else StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    stops = () if several else STOP_SIGNALS
    before = {signum: signal.getsignal(signum) for signum in stops}

    def restore() -> None:
        if stops:
            signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def on_stop(signum: int, frame: FrameType | None) -> None:
        request.signum = signal.Signals(signum)
        restore()

    def on_save(signum: int, frame: FrameType | None) -> None:
        nonlocal saving
        if not saving:  # a second signal must not end a process that is saving
            saving = True
            request.save_and_end()

    saving = False
    # A command stops at once on a signal (`convert/console/interrupts.py`, through this descriptor); a run does not.
    wakeup = signal.set_wakeup_fd(-1) if stops else -1
    for signum in stops:
        signal.signal(signum, on_stop)
    before_saving = None if SAVE_SIGNAL is None else signal.signal(SAVE_SIGNAL, on_save)
    try:
        yield request
    finally:
        restore()
        if SAVE_SIGNAL is not None:
            signal.signal(SAVE_SIGNAL, before_saving)
