"""Ends a command at once when it is told to stop: one line, no traceback, whatever it is doing.

Python's own way, an exception in the main thread, waits while a compiler or a library works there, and an import that
is interrupted may swallow it or end in a traceback.  What commands write is whole under its name or not there at all,
so that they can end anywhere, as by `kill -9`; a thread of its own does it.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}
if hasattr(signal, "SIGUSR1"):  # what SLURM's --signal=USR1@120 sends; Windows has none
    SIGNALS[signal.SIGUSR1] = "stopped by SIGUSR1"

_ALWAYS = (signal.SIGINT, signal.SIGTERM)  # the other may be taken by a run of training, which goes on

_said = {"prog": "", "advice": ""}
_children: set[subprocess.Popen[Any]] = set()


def run(prog: str, module: str) -> int:
    """Runs the `main` of a command's module, from its import on in a process that ends at once on a signal.

    With `--version` as the first argument, prints the version instead.

    Args:
      prog: Name of the command.
      module: Module whose `main` does the work and returns the exit status.

    Returns:
      Exit status.
    """
    if sys.argv[1:2] == ["--version"]:
        print(prog, sys.modules["flax_vae"].__version__)
        return 0
    end_on_signals(prog)
    try:
        try:
            return importlib.import_module(module).main()
        finally:
            sys.stdout.flush()  # here, where a closed pipe can be told from a defect
    except BrokenPipeError:  # the reader has seen enough, as `--help | head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        leave_signals()


def end_on_signals(prog: str) -> None:
    """Ends this process with one line and status 128 + n at SIGINT, SIGTERM or SIGUSR1, n being the signal's number.

    It is for commands, which own their process; call it first of all, from the main thread.  A signal that is ignored,
    as in `nohup` or a shell's background job, stays ignored.

    Args:
      prog: Name of the command, first in the line.
    """
    advise(prog, "")
    ours = [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for signum in ours:
        signal.signal(signum, _nothing)  # so that the system's handler writes to the pipe, and does nothing else
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end, args=(reading,), name="signals", daemon=True).start()


def advise(prog: str, advice: str) -> None:
    """Sets the line that `end_on_signals` prints.

    Args:
      prog: Name of the command.
      advice: What the same command does when it is given again; empty for nothing.
    """
    _said.update(prog=prog, advice=advice)


@contextlib.contextmanager
def ended_with_this_process(command: Sequence[str], **settings: Any) -> Iterator[subprocess.Popen[Any]]:
    """Starts a process that ends when the block does, or when `end_on_signals` ends this one.

    Args:
      command: Program and its arguments.
      **settings: Arguments of `subprocess.Popen`.

    Yields:
      The process.
    """
    with subprocess.Popen(command, **settings) as process:
        _children.add(process)
        try:
            yield process
        finally:
            _children.discard(process)
            process.kill()


def advice(prog: str) -> str:
    """Returns what the same command does when it is given again, or an empty text; see `advise`."""
    return _said["advice"] if _said["prog"] == prog else ""


def leave_signals() -> None:
    """Gives the signals back to the system, for the moment in which the interpreter ends, where no handler can run."""
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)


def _nothing(signum: int, frame: object) -> None:
    pass


def _end(reading: int) -> None:
    signum = os.read(reading, 1)[0]
    while signum not in SIGNALS or (signum not in _ALWAYS and signal.getsignal(signum) is not _nothing):
        signum = os.read(reading, 1)[0]
    try:
        if "flax_vae.convert.files.atomic" in sys.modules:  # otherwise nothing has been begun
            sys.modules["flax_vae.convert.files.atomic"].remove_unfinished()
        # The bar of a terminal is wiped away, and its cursor shown again.
        wipe = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
        advice = f"; {_said['advice']}" if _said["advice"] else ""
        os.write(2, f"{wipe}{_said['prog']}: {SIGNALS[signal.Signals(signum)]}{advice}\n".encode())
        for process in list(_children):  # last of all: the main thread may be waiting for them, and would go on
            if process.returncode is None:
                os.kill(process.pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    finally:
        os._exit(128 + signum)
