"""Joins the processes of a command before they use a device, and ends them together."""

import contextlib
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import arg

from flax_vae.convert.console import NONE


@dataclass(frozen=True)
class DistributionFlags:
    """Several processes that train one model."""

    distributed: bool = False
    """Join the other processes of a TPU pod, SLURM or Open MPI, which give their addresses."""
    coordinator: Annotated[str | None, arg(metavar="HOST:PORT", help_behavior_hint=NONE)] = None
    """Address of process 0, for several processes elsewhere; each is given the same address and settings."""
    processes: Annotated[int | None, arg(metavar="N", help_behavior_hint=NONE)] = None
    """Number of processes."""
    process: Annotated[int | None, arg(metavar="I", help_behavior_hint=NONE)] = None
    """Index of this process, from 0."""
    join_timeout: Annotated[
        float | None, arg(metavar="SECONDS", help_behavior_hint="(default: 45; with --distributed 300)")
    ] = None
    """Time within which all processes must have started."""


def is_joined(given: DistributionFlags) -> bool:
    """Returns whether flags say that this process is one of several.

    Args:
      given: Flags of the command.
    """
    return given.distributed or (given.coordinator, given.processes, given.process) != (None, None, None)


def join(given: DistributionFlags) -> contextlib.AbstractContextManager[dict[str, Any]]:
    """Joins the other processes, if there are any, before a device is used.

    Args:
      given: Flags of the command.

    Returns:
      Context in which a failure of one process ends all, and which yields the facts that must be equal; see
      `flax_vae.train.devices.agreement`.
    """
    if not is_joined(given):
        return contextlib.nullcontext({})
    from flax_vae.train.devices import agreement, join_processes

    timeout = {} if given.join_timeout is None else {"timeout": given.join_timeout}
    join_processes(given.coordinator, given.processes, given.process, **timeout)
    return agreement()


def end(status: int, given: DistributionFlags) -> int:
    """Returns the exit code; one of several processes exits here, because others may wait for it.

    Args:
      status: Exit code of this process.
      given: Flags of the command.
    """
    if not is_joined(given):
        return status
    import jax

    from flax_vae.train.devices import leave

    if jax.distributed.is_initialized():
        leave(status)
    return status
