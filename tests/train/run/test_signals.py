"""Signals that ask a run to save and end."""

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
    """The handlers of this process, which every test must leave as they were."""
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield handlers
    assert {signum: signal.getsignal(signum) for signum in SIGNALS} == handlers


@pytest.mark.parametrize(
    ("sent", "counts_as"),
    [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGUSR1, signal.SIGTERM)],
)
def test_a_signal_is_a_request(sent, counts_as):
    with stop_requests() as stop:
        assert not stop.asked(1)
        os.kill(os.getpid(), sent)
        assert stop.asked(2)
        assert stop.signum == counts_as


def test_sigusr1_again_does_not_end_a_run_that_is_saving():
    with stop_requests() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)  # its default would end this process
        assert stop.asked(1)


def test_the_second_sigterm_does_what_it_always_did(before):
    with stop_requests():
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]


def test_of_several_processes_sigusr1_is_passed_on_once_to_the_handler_of_sigterm(monkeypatch, before):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    got = []
    signal.signal(signal.SIGTERM, lambda signum, frame: got.append(signum))  # as JAX has it
    try:
        with stop_requests():
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
        assert got == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])


def test_elsewhere_than_in_the_main_thread_nothing_is_installed(before):
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
        (2, "SIGINT", 130, "p: interrupted"),  # of several processes each ends by itself, and the others notice
        (2, "SIGUSR1", 0, "asked"),
    ],
)
def test_within_a_command_a_run_answers_by_itself(count, sent, status, last):
    code = f"""
import ctypes, os, signal, time
from flax_vae.convert.console.interrupts import end_on_signals
end_on_signals("p")
import jax
jax.process_count = lambda: {count}
from flax_vae.train.run.signals import stop_requests
if {count} > 1:  # JAX's handler is one of C, of which Python knows nothing
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
