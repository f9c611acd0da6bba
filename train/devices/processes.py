"""Connects several processes that train one model together, before they use a device."""

import math
import os
import sys
import threading
from typing import NoReturn

import jax

from flax_vae.train.devices.rendezvous import meet
from flax_vae.train.errors import TrainError

# A process that has been silent for so long counts as dead; the others then end with an error instead of waiting for it
# in their next all-reduce.  JAX's default is 100 s.
HEARTBEAT_SECONDS = 30

JOIN_SECONDS = 45  # for processes that are started by hand or by a script, at about the same time
_FEWEST_SECONDS = 10  # for JAX to connect processes that have met
_LEAVE_SECONDS = 5
_LAUNCHER_SECONDS = 300  # JAX's default, for processes that a cluster starts


def join_processes(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    timeout: float | None = None,
) -> None:
    """Makes this process one of several; `jax.devices()` then lists the devices of all of them.

    Call it before any other function of JAX.  Without arguments, everything is taken from the environment: a TPU pod,
    SLURM or Open MPI.

    Args:
      coordinator: Address `HOST:PORT` of process 0, reachable for all others.
      count: Number of processes.
      index: Index of this process, from 0.
      timeout: Seconds to wait for the other processes; None means 45 with a coordinator, and 300 without.

    Raises:
      TrainError: If an argument is wrong or missing, if the environment does not provide them, if process 0 cannot be
        reached, if another process does not arrive in time, if an index is started twice, or if the port is taken.

    Source: `jax.distributed.initialize`.
    """
    given = {"coordinator": coordinator, "processes": count, "process": index}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise TrainError(f"{' and '.join(missing)} must be given too: HOST:PORT, the number of processes and the index")
    if coordinator is not None and count is not None and index is not None:
        host, port = _address(coordinator)
        if not 0 <= index < count:
            raise TrainError(f"process={index} of processes={count} must be from 0 to {count - 1}")
        timeout = JOIN_SECONDS if timeout is None else timeout
        meet(host, port, count, index, timeout)
    try:
        jax.distributed.initialize(
            coordinator, count, index,
            initialization_timeout=math.ceil(_LAUNCHER_SECONDS if timeout is None else max(timeout, _FEWEST_SECONDS)),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        advice = "; name the processes with coordinator, processes and process" if coordinator is None else ""
        raise TrainError(f"the processes could not be joined ({error}){advice}") from error


def leave(status: int) -> NoReturn:
    """Ends the interpreter without a long wait, so that processes that still run notice the end of this one.

    A normal exit waits up to five minutes for all processes to end; if only this one failed, the others meanwhile wait
    for its part of an all-reduce.

    Args:
      status: Exit status.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    goodbye = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    goodbye.start()
    goodbye.join(_LEAVE_SECONDS)  # returns at once if all processes end
    os._exit(status)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise TrainError(f"coordinator={coordinator!r} must be HOST:PORT, such as 10.0.0.1:8476")
    return host.strip("[]"), int(port)
