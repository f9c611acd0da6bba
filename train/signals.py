"""Being asked to stop: SIGTERM from a scheduler, Ctrl-C from a person."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Which signal, if any, asked for an end after the current step.

    Attributes:
      signum: the signal, or None.
    """

    signum: signal.Signals | None = None

    def asked(self, step: int) -> bool:
        """Whether the run is to end after this step."""
        return self.signum is not None


class CommonStopRequest(StopRequest):
    """The same for several processes: SIGTERM to one of them ends all after the same step.

    JAX has the signal's handler then; one of our own would take it away.  The step is agreed on in the background, a
    little ahead, so asking costs nothing.
    """

    def asked(self, step: int) -> bool:  # noqa: D102 - as in StopRequest
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(step):
            self.signum = signal.SIGTERM
        return self.signum is not None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request; the second does what it always did.

    Only the main thread can install handlers; elsewhere no request ever comes.
    """
    import jax

    if jax.process_count() > 1:
        yield CommonStopRequest()
        return
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    def on_signal(signum: int, frame: FrameType | None) -> None:
        request.signum = signal.Signals(signum)
        restore()

    for signum in STOP_SIGNALS:
        signal.signal(signum, on_signal)
    try:
        yield request
    finally:
        restore()
