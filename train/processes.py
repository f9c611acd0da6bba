"""Several processes that train one model together: how each finds the others, before it touches a device."""

import socket
import time

import jax

from train.errors import TrainError

# A process that has been silent for so long is dead, and the others then end with an error instead of waiting for it
# in their next sum over devices.  JAX's own default is 100 s.
HEARTBEAT_SECONDS = 30

_CONNECT_SECONDS = 300  # machines of one job do not start at the same moment
_RETRY_SECONDS = 0.5


def join_processes(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    timeout: float = _CONNECT_SECONDS,
) -> None:
    """Makes this process one of several; `jax.devices()` are then those of all of them.

    Call it before anything else of JAX.  Without arguments everything is taken from the surroundings: a TPU pod, SLURM
    or Open MPI.

    Args:
      coordinator: `HOST:PORT` of process 0, which all others can reach.
      count: how many processes there are.
      index: which one this is, from 0.
      timeout: seconds to wait for process 0.

    Raises:
      TrainError: if an argument is wrong or missing, if there is nothing to take them from, or if process 0 cannot be
        reached.

    Source: `jax.distributed.initialize`.
    """
    given = {"coordinator": coordinator, "processes": count, "process": index}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise TrainError(f"{' and '.join(missing)} must be given too; name HOST:PORT, how many there are and which one")
    if coordinator is not None and count is not None and index is not None:
        host, port = _address(coordinator)
        if not 0 <= index < count:
            raise TrainError(f"process={index} of processes={count} must be from 0 to {count - 1}")
        if index:
            _wait_for(host, port, timeout)
    try:
        jax.distributed.initialize(coordinator, count, index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        advice = "; name the processes with coordinator, processes and process" if coordinator is None else ""
        raise TrainError(f"the processes could not be joined ({error}){advice}") from error


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise TrainError(f"coordinator={coordinator!r} must be HOST:PORT, such as 10.0.0.1:8476")
    return host.strip("[]"), int(port)


def _wait_for(host: str, port: int, timeout: float) -> None:
    """Returns when somebody listens there; JAX itself would end the interpreter after a while, without an exception."""
    reason, end = "", time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            socket.create_connection((host, port), timeout=max(end - time.monotonic(), _RETRY_SECONDS)).close()
            return
        except OSError as error:
            reason = f" ({error})"
        time.sleep(_RETRY_SECONDS)
    raise TrainError(
        f"process 0 did not answer at {host}:{port} within {timeout:g} s{reason}; start it, or correct coordinator"
    )
