"""Counts the processes of a run before JAX connects them.

`jax.distributed.initialize` aborts the interpreter, in every process and also in those of a running job, if an index is
started twice, a process is missing, or another program listens at the coordinator's port.  Therefore the processes
first count themselves here, at that port; process 0 then closes it, and JAX opens it again.

Each message is one line of JSON.  Process 0 greets, each process sends its index, and process 0 answers when all have
arrived or when they cannot.
"""

import contextlib
import json
import os
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from flax_vae.train.errors import TrainError

_NAME, _WAIT = "flax-vae-rendezvous", "seconds"  # fields of the greeting
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # a client's preface and its settings
_LONGEST = 4096  # bytes of a message
_BUSY_SECONDS = 10.0  # time for the port of a run that is ending to become free
_GREETING_SECONDS = 5.0
_START_SECONDS = 30.0  # timeout for the start of JAX's service
_RETRY_SECONDS = 0.2


class _NotOurs(Exception):
    """The program at the coordinator's address is not a rendezvous."""


def meet(host: str, port: int, count: int, index: int, timeout: float) -> None:
    """Returns when all processes have arrived, and JAX's service can be started or reached at the address.

    Args:
      host: Name or address of the machine of process 0.
      port: Coordinator port on that machine.
      count: Number of processes.
      index: Index of this process, from 0.
      timeout: Seconds to wait for the others.

    Raises:
      TrainError: In every process that has arrived, if one is missing after the timeout, if an index was started twice,
        or if `count` differs; and if the port is taken or process 0 cannot be reached.
    """
    deadline = time.monotonic() + timeout
    if index:
        _report_to_first(host, port, {"index": index, "count": count}, deadline, timeout)
        _wait_for_jax(host, port)
    else:
        with _listen(host, port, count) as listener:
            _Meeting(listener, count, timeout).hold(deadline)


def _listen(host: str, port: int, count: int) -> socket.socket:
    """Opens the port on every address of this machine, as JAX does.

    Raises:
      TrainError: If it is taken.
    """
    give_up = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            return socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=max(count, 16))
        except OSError as error:
            with contextlib.suppress(OSError, _NotOurs):  # a rendezvous there belongs to another process 0
                _ask(host, port, {"index": 0, "count": count}, time.monotonic() + _GREETING_SECONDS)
            if time.monotonic() > give_up:
                reason = os.strerror(error.errno or 0)
                raise TrainError(
                    f"port {port} of this machine cannot be opened ({reason}): process 0 or another program uses it; "
                    "start process 0 once, or give all processes a coordinator with a free port"
                ) from error
        time.sleep(_RETRY_SECONDS)


@dataclass
class _Visitor:
    """One connection to process 0."""

    connection: socket.socket
    received: bytes = b""
    index: int | None = None


@dataclass
class _Meeting:
    """State of process 0 while it waits for the others."""

    listener: socket.socket
    count: int
    timeout: float
    visitors: list[_Visitor] = field(default_factory=list)

    def hold(self, deadline: float) -> None:
        """Waits for all processes, and sends all of them the result."""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self.listener, selectors.EVENT_READ)
                while missing := self._missing():
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        raise TrainError(_missing_text(missing, self.count, self.timeout))
                    for key, _ in selector.select(remaining):
                        if key.data is None:
                            self._admit(selector, deadline)
                        elif not self._hear(key.data):
                            selector.unregister(key.data.connection)
                            key.data.connection.close()
                            self.visitors.remove(key.data)
            self._tell({"go": True})
        except TrainError as error:
            self._tell({"error": str(error)})
            raise
        finally:
            for visitor in self.visitors:
                visitor.connection.close()

    def _missing(self) -> list[int]:
        return sorted(set(range(1, self.count)) - {visitor.index for visitor in self.visitors})

    def _admit(self, selector: selectors.BaseSelector, deadline: float) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self.listener.accept()
            connection.settimeout(_GREETING_SECONDS)
            connection.sendall(_encode({_NAME: 1, _WAIT: max(deadline - time.monotonic(), 0)}))
            self.visitors.append(_Visitor(connection))
            selector.register(connection, selectors.EVENT_READ, self.visitors[-1])

    def _hear(self, visitor: _Visitor) -> bool:
        """Reads a message; returns whether to keep the connection, which may have ended or belong to another program.

        Raises:
          TrainError: If the process does not fit the others.
        """
        try:
            chunk = visitor.connection.recv(_LONGEST)
        except OSError:
            return False
        visitor.received += chunk
        if not chunk or len(visitor.received) > _LONGEST or visitor.index is not None:
            return False
        if not visitor.received.endswith(b"\n"):
            return True
        message = _decode(visitor.received)
        if message is None or not isinstance(message.get("index"), int):
            return False
        index, count = message["index"], message.get("count")
        visitor.index = -1  # receives the result without being counted
        if count != self.count:
            raise TrainError(
                f"process {index} was started with processes={count}, process 0 with {self.count}; give all of them "
                "the same number"
            )
        if index == 0 or index in {other.index for other in self.visitors}:
            raise TrainError(
                f"process {index} was started twice; give each of the {self.count} processes its own index, from 0 to "
                f"{self.count - 1}"
            )
        visitor.index = index
        return True

    def _tell(self, message: dict[str, Any]) -> None:
        for visitor in self.visitors:
            if visitor.index is not None:
                with contextlib.suppress(OSError):
                    visitor.connection.sendall(_encode(message))


def _missing_text(missing: list[int], count: int, timeout: float) -> str:
    names = ", ".join(str(index) for index in missing[:8]) + (", ..." if len(missing) > 8 else "")
    return (
        f"process {names} of {count} did not come within {timeout:g} s; start every process, or wait longer for them: "
        "--join-timeout SECONDS"
    )


def _report_to_first(host: str, port: int, hello: dict[str, Any], deadline: float, timeout: float) -> None:
    """Registers this process with process 0, and waits for its answer.

    Raises:
      TrainError: If process 0 cannot be reached, or answers with an error.
    """
    reason, busy = "", None
    while time.monotonic() < deadline:
        try:
            return _ask(host, port, hello, deadline)
        except _NotOurs as error:
            reason = f" ({error})"
            busy = busy or time.monotonic() + _BUSY_SECONDS
            if time.monotonic() > busy:
                raise TrainError(
                    f"the program at {host}:{port} is not a process 0 that waits for others: {error}; give all "
                    "processes a coordinator with a free port"
                ) from error
        except OSError as error:
            reason = f" ({error})"
        time.sleep(_RETRY_SECONDS)
    raise TrainError(
        f"process 0 did not answer at {host}:{port} within {timeout:g} s{reason}; start it, or correct coordinator"
    )


def _ask(host: str, port: int, hello: dict[str, Any], deadline: float) -> None:
    """Connects to process 0 once.

    Raises:
      TrainError: If the processes cannot be joined.
      OSError: If the connection fails or ends early.
      _NotOurs: If another program listens there.
    """
    left = max(deadline - time.monotonic(), _RETRY_SECONDS)
    with socket.create_connection((host, port), timeout=left) as connection, connection.makefile("rb") as lines:
        connection.settimeout(min(left, _GREETING_SECONDS))
        try:
            greeting = lines.readline(_LONGEST)
        except TimeoutError as error:
            raise _NotOurs("it does not speak first") from error
        if not greeting:
            raise ConnectionError("the connection was closed")
        first = _decode(greeting)
        if first is None or first.get(_NAME) != 1 or not isinstance(first.get(_WAIT), float | int):
            raise _NotOurs("it is a run that is going on, or another program")
        connection.sendall(_encode(hello))
        connection.settimeout(first[_WAIT] + _GREETING_SECONDS)  # process 0 sets the timeout
        answer = _decode(lines.readline(_LONGEST))
    if answer is None:
        raise ConnectionError("process 0 ended")
    if "error" in answer:
        raise TrainError(str(answer["error"]))


def _wait_for_jax(host: str, port: int) -> None:
    """Returns when JAX's service, which uses HTTP/2, answers at the address.

    Raises:
      TrainError: If it does not answer in time.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host, port), timeout=_GREETING_SECONDS) as connection,
        ):
            connection.sendall(_HTTP2)
            frame = connection.recv(9)  # length, type, flags, stream
            if len(frame) > 3 and frame[3] == 4:  # SETTINGS
                return
        time.sleep(_RETRY_SECONDS)
    raise TrainError(f"process 0 came to {host}:{port} and ended before it started JAX's service; see its message")


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
