"""Keeps a folder in a bucket, which has no locks, for one process.

The holder is the object `.lock-NUMBER` with the highest number, which is created only if it is absent.  Its holder
writes it again every few seconds, so that another machine, whose clock may be another one, can see whether it lives.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flax_vae.convert.errors import AddressError
from flax_vae.convert.files.objects import create_at, list_at, read_at, remove_at, write_at

PREFIX = ".lock-"
BEAT_SECONDS = 15
SILENT_SECONDS = 75  # without a sign of life, after which a holder elsewhere is taken to have ended


class BucketLock:
    """A folder in a bucket that this process holds; a context manager.

    Attributes:
      notes: A sentence about the holder before, if it was taken over.
    """

    def __init__(self, folder: Path, *, take_over: bool = False):
        """Takes the folder.

        A holder that has ended is taken over: one on this machine at once, and one elsewhere when it has given no sign
        of life for a while, which is waited for.

        Args:
          folder: The folder.
          take_over: Whether to take over from a holder in any case.

        Raises:
          BlockingIOError: If another process holds it; names it.
          AddressError: If the bucket cannot be reached.
        """
        self.notes: list[str] = []
        self._folder, self._token, self._beats = folder, secrets.token_hex(8), 0
        self._begun = _now()
        before = _newest(folder)
        if before is not None:
            number, holder = before
            self.notes.append(_require_ended(folder, number, holder, take_over))
        self._number = 1 if before is None else before[0] + 1
        try:
            create_at(self._path, self._content())
        except FileExistsError:
            # The client may have tried twice, because the answer to the first attempt was lost.
            holder = _read(folder, self._number)
            if holder.get("token") != self._token:
                raise _refusal(folder, self._number, holder) from None
        for number in _numbers(folder):
            if number < self._number:
                remove_at(folder / _name(number))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="bucket-lock", daemon=True)

    def __enter__(self) -> "BucketLock":
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(AddressError):
            remove_at(self._path)

    def require_held(self) -> None:
        """Checks that no other process has taken the folder over.

        Raises:
          BlockingIOError: If one has; names it.
        """
        newest = max(_numbers(self._folder), default=None)
        if newest is not None and newest != self._number:
            raise BlockingIOError(f"{self._folder} was taken over by {_describe(_read(self._folder, newest))}")

    @property
    def _path(self) -> Path:
        return self._folder / _name(self._number)

    def _content(self) -> bytes:
        return json.dumps(
            {
                "token": self._token,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "machine": _machine(),
                "started": _start_of(os.getpid()),
                "begun": self._begun,
                "alive": _now(),
                "beats": self._beats,
            },
            indent=1,
        ).encode()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(AddressError):  # the next one may come through
                if max(_numbers(self._folder), default=self._number) == self._number:
                    self._beats += 1
                    write_at(self._path, self._content())


def _require_ended(folder: Path, number: int, holder: dict[str, Any], take_over: bool) -> str:
    """Returns a sentence about a holder that may be taken over.

    Raises:
      BlockingIOError: If it may not.
    """
    who = _describe(holder)
    if take_over:
        return f"taken over from {who}, as --take-over says"
    if holder.get("machine") == _machine():
        if _is_alive(holder.get("pid"), holder.get("started")):
            raise _refusal(folder, number, holder)
        return f"taken over from {who}, which has ended"
    print(
        f"{folder / _name(number)} is held by {who}; waiting for {SILENT_SECONDS} s for a sign of life", file=sys.stderr
    )
    end = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < end:
        time.sleep(1)
        newest = _newest(folder)
        if newest is None or newest[0] != number:
            return f"taken over from {who}, which has ended"
        if newest[1].get("beats") != holder.get("beats"):
            raise _refusal(folder, *newest)
    return f"taken over from {who}, which gave no sign of life for {SILENT_SECONDS} s"


def _refusal(folder: Path, number: int, holder: dict[str, Any]) -> BlockingIOError:
    return BlockingIOError(f"{folder / _name(number)} is held by {_describe(holder)}")


def _describe(holder: dict[str, Any]) -> str:
    if "pid" not in holder:
        return "another process"
    return (
        f"process {holder['pid']} on {holder.get('host')} since {holder.get('begun')} "
        f"(last sign of life {holder.get('alive')}, by its clock)"
    )


def _newest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    number = max(_numbers(folder), default=None)
    return None if number is None else (number, _read(folder, number))


def _numbers(folder: Path) -> Iterator[int]:
    for entry in list_at(folder):
        number = entry.name.removeprefix(PREFIX)
        if entry.name.startswith(PREFIX) and number.isdecimal():
            yield int(number)


def _read(folder: Path, number: int) -> dict[str, Any]:
    try:
        content = json.loads(read_at(folder / _name(number)))
    except (FileNotFoundError, ValueError):  # it has just ended
        return {}
    return content if isinstance(content, dict) else {}


def _name(number: int) -> str:
    return f"{PREFIX}{number:06}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _machine() -> str:
    """Returns a name of the machine, and of the container, in which the number of a process means one process."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _start_of(pid: int) -> str | None:
    """Returns the time at which a process started, by which it differs from a later one of the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]  # a zombie has ended


def _is_alive(pid: Any, started: str | None) -> bool:
    if not isinstance(pid, int):
        return True
    if started is not None:
        return _start_of(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def is_lock(name: str) -> bool:
    """Returns whether an object of this name, in a folder, belongs to a lock.

    Args:
      name: Name of the object.
    """
    return name.startswith(PREFIX)
