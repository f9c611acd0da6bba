"""Tests of the signals that request a run to save and end."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from flax_vae.train.run.signals import stop_requests

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def before():
    """Checks that each test restores the handlers of this process."""
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield handlers
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == handlers


@pytest.mark.parametrize(
    ("sent", "counts_as"),
    [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1, signal.SIGTERM)],
)
def test_a_signal_requests_a_stop(sent, counts_as):
    with stop_requests() as stop:
        assert not stop.asked(1)
        os.kill(os.getpid(), sent)
        assert stop.asked(2)
        assert stop.signum == counts_as


def test_a_second_sigusr1_is_ignored():
    with stop_requests() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)  # its default action would end this process
        assert stop.asked(1)


def test_a_second_sigterm_has_its_former_effect(before):
    with stop_requests():
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]


def test_with_several_processes_sigusr1_is_passed_to_the_handler_of_sigterm(monkeypatch, before):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    got = []
    signal.signal(signal.SIGTERM, lambda signum, frame: got.append(signum))  # like JAX's handler
    try:
        with stop_requests():
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert got == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])


def test_other_threads_install_no_handlers(before):
    def run():
        with stop_requests() as stop:
            asked.append(stop.asked(1))
            handlers.update({signum: signal.getsignal(signum) for signum in SIGNALS})

    asked, handlers = [], {}
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [False]
    assert handlers == before


@pytest.mark.parametrize(
    ("count", "sent", "status", "last"),
    [
        (1, "SIGUSR1 SIGUSR1", 0, "asked"),
        (1, "SIGTERM SIGUSR1", 0, "asked"),
        (1, "SIGTERM SIGTERM", 143, "p: stopped by SIGTERM"),
        (2, "SIGINT", 130, "p: interrupted"),  # with several processes, each ends on its own, and the others notice
        (2, "SIGUSR1", 0, "asked"),
    ],
)
def test_a_run_within_a_command_handles_its_signals(count, sent, status, last):
    code = f"""
import ctypes, os, signal, time
from flax_vae.convert.console.interrupts import end_on_signals
end_on_signals("p")
import jax
jax.process_count = lambda: {count}
from flax_vae.train.run.signals import stop_requests
if {count} > 1:  # like JAX's handler, set in C and invisible to Python
    ctypes.CDLL(None).signal(signal.SIGTERM, 1)  # SIG_IGN
with stop_requests() as stop:
    for name in {sent!r}.split():
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.3)
    assert {count} > 1 or stop.signum is not None
    print("asked", flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    assert (done.stdout + done.stderr).strip().endswith(last)
