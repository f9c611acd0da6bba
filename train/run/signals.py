"""Requests to save and end: SIGTERM or SIGUSR1 from a scheduler, Ctrl-C from a person."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# What SLURM's --signal=USR1@120 sends; counts as SIGTERM.  Windows has none.
SAVE_SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR1", None)


class StopRequest:
    """Which signal, if any, asked for an end after the current step.

    Attributes:
      signum: the signal, or None.
    """

    signum: signal.Signals | None = None

    def save_and_end(self) -> None:
        """Makes the request that SIGTERM makes."""
        self.signum = self.signum or signal.SIGTERM

    def asked(self, step: int) -> bool:
        """Whether the run is to end after this step."""
        return self.signum is not None


class CommonStopRequest(StopRequest):
    """The same for several processes: SIGTERM to one of them ends all after the same step.

    JAX has the signal's handler then; one of our own would take it away.  The step is agreed on in the background, a
    little ahead, so asking costs nothing.
    """

    def save_and_end(self) -> None:  # noqa: D102 - as in StopRequest
        os.kill(os.getpid(), signal.SIGTERM)  # to JAX's handler, which tells the others

    def asked(self, step: int) -> bool:  # noqa: D102 - as in StopRequest
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(step):
            self.signum = signal.SIGTERM
        return self.signum is not None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request; the second does what it always did.  SIGUSR1 counts as SIGTERM.

    Only the main thread can install handlers; elsewhere no request ever comes, unless JAX has the handler of SIGTERM.
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
        if not saving:  # another one asks for nothing new, and must not end a process that is saving
            saving = True
            request.save_and_end()

    saving = False
    # A command ends at once on a signal (`convert/console/interrupts.py`, through this descriptor); a run has its own.
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
