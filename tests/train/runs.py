"""Starts runs in other processes, and sends them signals at chosen moments.

`python -m tests.train.runs` reads one request per line, {"workdir", "signum", "touch"}, forks a trainer for it, and
prints how it ended.  Forking avoids importing again, and all trainers use the compiled step of the first.
"""

import gc
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# The programs run only a few times, on few pixels; see tests/conftest.py.
ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@dataclass(frozen=True)
class End:
    """Result of a trainer.

    Attributes:
      status: Exit status; -9 after SIGKILL.
      output: Text of standard output and standard error.
      touch: Operation on its files that the signal preceded.
    """

    status: int
    output: str
    touch: str


class Trainers:
    """Runs `flax-vae-train` in directories that hold a config, one run after another; a context manager."""

    def __init__(self, devices: int = 1):
        self._environment = os.environ | ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(devices)}

    def __enter__(self) -> "Trainers":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.train.runs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self._environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # it ends with its input

    def __call__(self, workdir: Path | str, signum: int = 0, touch: int = 0) -> End:
        """Trains until the end, or until a signal is sent before the `touch`-th operation on its files."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"workdir": str(workdir), "signum": signum, "touch": touch}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return End(**json.loads(self._process.stdout.readline()))


def start(
    workdir: Path | str, *, devices: int, count: int = 1, words: Sequence[Sequence[str]] | None = None
) -> list[subprocess.Popen[str]]:
    """Starts `flax-vae-train` in several processes that train together; each writes both outputs into one pipe.

    Args:
      workdir: Run directory.
      devices: Number of devices of each process.
      count: Number of processes.
      words: Further arguments of each process.
    """
    address = f"127.0.0.1:{free_port()}"
    joined = [["--coordinator", address, "--processes", str(count), "--process", str(index)] for index in range(count)]
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "flax_vae.train.cli.main", "--workdir", str(workdir)),
                *(joined[index] if count > 1 else []),
                *(words[index] if words else []),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(devices)},
        )
        for index in range(count)
    ]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


# Audit events that change a folder.  TensorStore writes its files without Python, between these.
_TOUCHES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "open")


def _strike(workdir: str, signum: int, touch: int, note: Path) -> None:
    """Sends this process a signal before its `touch`-th operation on the files of a run."""
    count, remote = 0, workdir.startswith("gs://")

    def touches(event: str, args: tuple) -> bool:
        if remote:  # each request of gcsfs, reading ones too; the emulator closes every connection
            return event == "socket.connect"
        if event not in _TOUCHES or not str(args[0]).startswith(workdir):
            return False
        return event != "open" or bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    def watch(event: str, args: tuple) -> None:
        nonlocal count
        if not touches(event, args):
            return
        count += 1
        if count == touch:
            count += 1  # the note is written once
            note.write_text(f"{event} {re.sub(re.escape(workdir), '', str(args[1 if remote else 0]))}")
            os.kill(os.getpid(), signum)

    sys.addaudithook(watch)


def _share_step(program: Path) -> None:
    """Stores the first compiled step in a file, which later trainers load."""
    import jax
    from jax.experimental.serialize_executable import deserialize_and_load, serialize

    from flax_vae.train.devices.parallel import CompiledStep

    call = CompiledStep.__call__

    def shared(self: CompiledStep, state: Any, batch: Any, constants: Any) -> Any:
        if self._compiled is None and program.exists():
            binary, names = pickle.loads(program.read_bytes())
            structure = jax.tree.structure
            self._compiled = deserialize_and_load(
                binary, structure(((state, batch, constants), {})), structure((state, dict.fromkeys(names, 0)))
            )
        after, scores = call(self, state, batch, constants)
        if not program.exists():
            unfinished = program.with_name(f"{program.name}-{os.getpid()}")
            unfinished.write_bytes(pickle.dumps((serialize(self._compiled)[0], list(scores))))
            unfinished.rename(program)
        return after, scores

    CompiledStep.__call__ = shared


def _serve(folder: Path) -> None:
    import flax_vae.train.cli.main
    import flax_vae.train.loop  # noqa: F401 - loaded once, before forking

    gc.freeze()  # what was imported is no garbage of any trainer
    gc.set_threshold(20_000, 20, 20)
    _share_step(folder / "step")
    output, note = folder / "output", folder / "touch"
    for line in sys.stdin:
        request = json.loads(line)
        output.write_text("")
        note.unlink(missing_ok=True)
        pid = os.fork()  # no device has been used yet, so no thread of JAX runs
        if not pid:
            descriptor = os.open(output, os.O_WRONLY)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            if request["signum"]:
                _strike(request["workdir"], request["signum"], request["touch"], note)
            status = 70
            try:
                status = flax_vae.train.cli.main.main(["--workdir", request["workdir"]])
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)  # the code after the fork belongs to the parent process
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        touch = note.read_text() if note.exists() else ""
        print(json.dumps({"status": status, "output": output.read_text(), "touch": touch}), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        _serve(Path(folder))
