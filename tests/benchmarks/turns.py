"""Starts the contenders of a row, each in a process of its own, and lets them take turns."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.rows import OURS, Row, peers_of
from tests.benchmarks.worker import PLAIN

ROOT = Path(__file__).parents[2]
# Contenders share a GPU, so JAX must not take most of it at the start.
# Huge pages for everyone: on a virtual machine, small ones cost a training step up to half a second.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
PAUSE = 0.3  # seconds before a turn: idle threads of the one before may go on spinning for a while
SITS_OUT = 2.0  # after the first round, peers this much slower than the fastest peer have had their turn


class ContenderError(Exception):
    """A contender could not do the work; the message says why."""


class Process:
    """A worker; use it in a `with`, which ends it."""

    def __enter__(self) -> "Process":
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, **request: Any) -> dict:
        """Sends a request and returns the answer.

        Raises:
          ContenderError: if the worker reports an error, or ends.
        """
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        try:
            print(json.dumps(request), file=requests, flush=True)
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or [""])[-1]
            raise ContenderError(f"ended by signal {-code}" if code < 0 else f"ended with {code}: {last}")
        answer = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer


@dataclass
class Taken:
    """What one contender took.

    Attributes:
      seconds: of its timed calls.
      peak: bytes of its process or its device.
      compile_s: seconds of compiling.
      first_s: seconds of a first call, in which PyTorch compiles.
      traffic: bytes that a call moves between the device and its memory, as our compiler counts them.
    """

    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    compile_s: float | None = None
    first_s: float | None = None
    traffic: float | None = None

    @property
    def median(self) -> float:
        """Of the calls."""
        return statistics.median(self.seconds)


@dataclass
class Outcome:
    """A row's measurements by contender, without those that failed, and what is to be said beside them."""

    row: Row
    taken: dict[str, Taken]
    notes: list[str]

    @property
    def best_peer(self) -> float | None:
        """Seconds of the fastest peer."""
        return min((taken.median for name, taken in self.taken.items() if name != OURS), default=None)


def log(line: str) -> None:
    """Progress, apart from the table."""
    print(line, file=sys.stderr, flush=True)


def measure(row: Row, rounds: int) -> Outcome:
    """Returns what ours and the peers take for a row, in turns."""
    peers, notes = peers_of(row)
    outcome = Outcome(row, {}, notes)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        processes: dict[str, Process] = {}
        for name in (OURS, *peers):
            process = stack.enter_context(Process())
            if _tried(outcome, name, _start, process):
                processes[name] = process
        for turn in range(rounds):
            for name in list(processes):
                if turn and name != OURS and outcome.taken[name].median > SITS_OUT * (outcome.best_peer or 0):
                    continue
                if not _tried(outcome, name, _turn, processes[name]):
                    del processes[name]
        if row.work == "bands" and OURS in processes:
            banded = Path(folder, "banded.npy")
            processes.pop(OURS).ask(do="save", path=str(banded))
            stack.pop_all().close()  # the plain path needs the memory
            _compare_with_plain(outcome, banded)
    return outcome


def _start(process: Process, row: Row, name: str, taken: Taken) -> None:
    built = process.ask(do="build", contender=name, row=dataclasses.asdict(row))
    taken.compile_s, taken.first_s, taken.traffic = built["compile_s"], built["first_s"], built["traffic"]
    parts = {"compiled in": taken.compile_s, "first call": taken.first_s}
    log(f"  {name:14} " + (", ".join(f"{what} {s:.2f} s" for what, s in parts.items() if s is not None) or "built"))


def _turn(process: Process, row: Row, name: str, taken: Taken) -> None:
    time.sleep(PAUSE)
    if row.warm:
        process.ask(do="run")  # untimed: while others ran, the system may have taken back memory, as in no real loop
    for _ in range(row.calls):
        answer = process.ask(do="run")
        taken.seconds.append(answer["seconds"])
        taken.peak = answer["peak"]
        log(f"  {name:14} {answer['seconds']:.3f} s, {answer['peak'] / 1e9:.2f} GB")


def _tried(outcome: Outcome, name: str, step: Any, process: Process) -> bool:
    """Takes the step; a contender that fails is out, with a note, and the others go on."""
    try:
        step(process, outcome.row, name, outcome.taken.setdefault(name, Taken()))
    except ContenderError as error:
        del outcome.taken[name]
        outcome.notes.append(f"{outcome.row.name}: {name} failed: {error}")
        log(f"  {name:14} failed: {error}")
        return False
    return True


def _compare_with_plain(outcome: Outcome, banded: Path) -> None:
    """Adds a note of how the plain path, in its own process, differs from the bands, where it runs."""
    plain, taken = banded.with_name("plain.npy"), Taken()
    try:
        with Process() as process:
            _start(process, outcome.row, PLAIN, taken)
            _turn(process, outcome.row, PLAIN, taken)
            process.ask(do="save", path=str(plain))
    except ContenderError as error:
        outcome.notes.append(f"{outcome.row.name}: not compared with the plain path: {error}")
        return
    ours, theirs = np.load(banded, mmap_mode="r"), np.load(plain, mmap_mode="r")
    difference = np.abs(ours - theirs).max() / np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))
    outcome.notes.append(
        f"{outcome.row.name}: differs from the plain path by {difference:.1e} of its RMS at most; the plain path takes "
        f"{taken.median:.1f} s, {taken.peak / 1e9:.2f} GB"
    )
