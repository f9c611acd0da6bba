"""Compares the inputs and states of the processes of a run, and ends all of them if they differ.

The collective operations are always the same, independent of the settings of a run.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from flax_vae import __version__
from flax_vae.convert.errors import FlaxVaeError, shorten_sentences
from flax_vae.train.config import TrainConfig, flatten_config
from flax_vae.train.devices.state_checksums import checksums
from flax_vae.train.errors import RunError

WAIT_SECONDS = 600  # timeout for a process that is alive but still reads headers or verifies a checkpoint
_CHUNK = 4096
_SHOW = 3  # number of differences shown in one error
_PACKAGES = ("flax", "jax", "jaxlib", "optax", "orbax-checkpoint")
# Paths may differ between machines; their content is compared instead.
_ADDRESSES = (
    *("data.folder", "start_from", "teacher", "loss.lpips_weights"),
    *("validation.data", "validation.lpips_weights"),
)
SETTINGS = "settings"
_LONGEST = 40  # characters of a value in an error
_ABSENT = object()
_numbers = itertools.count()

Sections = dict[str, Mapping[str, Any]]


@contextlib.contextmanager
def agreement() -> Iterator[Sections]:
    """Ends all processes of a run with one error if this block fails in one of them, or if their facts differ.

    All processes must enter it, and nothing inside may wait for another process.

    Yields:
      A dictionary to fill: names and JSON values by heading, `settings` for example.

    Raises:
      RunError: If another process failed in this block, with its message; or if the facts differ, with the process, the
        fact and both values.
    """
    facts: Sections = {}
    if jax.process_count() == 1:
        yield facts
        return
    failure: Exception | None = None
    try:
        yield facts
    except Exception as error:  # every failure must be reported to the other processes
        failure = error
    text = failure and (str(failure) if isinstance(failure, FlaxVaeError) else repr(failure))
    reports = gather_values({"failure": text, "digests": {heading: _digest(facts[heading]) for heading in facts}})
    if failure is not None:
        raise failure
    for process, report in enumerate(reports):
        if report["failure"] is not None:
            raise RunError(f"process {process} failed: {report['failure']}")
    _compare(facts, [report["digests"] for report in reports])


def require_same_state(state: Any, step: int) -> None:
    """Checks that the replicated part of the state is equal in all processes.

    Args:
      state: Training state on the devices.
      step: Number of updates, for the message.

    Raises:
      RunError: In all processes, if it differs; names the first leaves that do.
    """
    if jax.process_count() == 1:
        return
    try:
        with agreement() as facts:
            facts["state"] = checksums(state)
    except RunError as error:
        raise RunError(
            f"the state differs between processes after step {step}, so no checkpoint of it is written: {error}"
        ) from error


def facts_of_run(config: TrainConfig, listing: Mapping[str, str], constants: Any) -> Sections:
    """Returns settings, versions, data and constants, which must be equal in all processes before the first step.

    Returns nothing for a run of one process.

    Args:
      config: Settings.
      listing: Content of the images, as returned by `flax_vae.train.data.data_listing`.
      constants: Constants of the losses.
    """
    if jax.process_count() == 1:
        return {}
    fields = flatten_config(config.to_dict())
    return {
        SETTINGS: {name: value for name, value in fields.items() if name not in _ADDRESSES},
        "version of": {name: importlib.metadata.version(name) for name in _PACKAGES} | {"flax-vae": __version__},
        "image": listing,
        "constant": checksums(constants),
    }


def facts_of_start(state: Any) -> Sections:
    """Returns checksums of the state before the first step; nothing for a run of one process.

    Args:
      state: Training state.
    """
    return {} if jax.process_count() == 1 else {"initial": checksums(state)}


def facts_of_models(settings: Mapping[str, Any], weights: Sequence[Any]) -> Sections:
    """Returns what must be equal in all processes that evaluate models together.

    Args:
      settings: Settings of the evaluation, JSON values by name, without addresses of files.
      weights: Parameters of each model.
    """
    found = {
        f"{number}/{name}": value for number, tree in enumerate(weights) for name, value in checksums(tree).items()
    }
    return {SETTINGS: dict(settings), "weight": found}


def gather_values(value: Any) -> list[Any]:
    """Returns the JSON values of all processes, in order.

    Args:
      value: JSON value of this process.

    Raises:
      RunError: If a process does not take part in time, or the numbers of devices per process differ.
    """
    data, sizes = _encode(value)
    rows = _gather(data)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def gather_float64(array: np.ndarray) -> np.ndarray:
    """Returns arrays of equal shape from all processes, stacked, with all bits, which JAX would round to 32.

    Args:
      array: Array of this process.

    Raises:
      RunError: If a process does not take part in time, or the numbers of devices per process differ.
    """
    words = np.ascontiguousarray(array, np.float64).reshape(-1).view(np.uint32)
    return np.ascontiguousarray(_gather(words)).view(np.float64).reshape(-1, *array.shape)


def _broadcast(value: Any, process: int) -> Any:
    """Returns the JSON value of one process in all processes."""
    data, sizes = _encode(value)
    with jax.transfer_guard("allow"):
        row = multihost_utils.broadcast_one_to_all(data, is_source=jax.process_index() == process)
    return json.loads(np.asarray(row)[: sizes[process]].tobytes())


def _encode(value: Any) -> tuple[np.ndarray, list[int]]:
    """Returns the value as bytes, padded to a length common to all processes, and the unpadded lengths."""
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = _gather(np.array(data.size, np.int32)).tolist()
    length = _CHUNK * -(-max(sizes) // _CHUNK)  # few different lengths, so that few programs are compiled
    return np.pad(data, (0, length - data.size)), sizes


def _gather(array: np.ndarray) -> np.ndarray:
    """Returns arrays of equal shape from all processes, stacked; waits with a timeout."""
    try:
        key = f"flax-vae-agreement-{next(_numbers)}"
        multihost.get_barrier_sync_fn()(key=key, timeout_ms=1000 * WAIT_SECONDS)
    except RuntimeError as error:
        first_line = next(iter(str(error).splitlines()), "")
        raise RunError(
            f"not all processes arrived within {WAIT_SECONDS} s to compare their state ({first_line}); start all again"
        ) from error
    local, total, count = jax.local_device_count(), jax.device_count(), jax.process_count()
    if local * count != total:
        raise RunError(
            f"this process has {local} of the {total} devices of {count} processes; give every process as many"
        )
    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(array))


def _compare(mine: Sections, digests: list[dict[str, str]]) -> None:
    for process, theirs in enumerate(digests):
        for heading in mine:
            if theirs.get(heading) == digests[0].get(heading):
                continue
            # Only now, and only from two processes: a listing of data may be long.
            own = mine[heading]
            found = _differences(heading, _broadcast(own, 0), _broadcast(own, process), process)
            raise RunError(
                f"the processes differ: {shorten_sentences(found, _SHOW)}. Give all of them the same settings, data, "
                "initial weights and versions"
            )


def _differences(heading: str, first: Mapping[str, Any], other: Mapping[str, Any], process: int) -> list[str]:
    prefix = "" if heading == SETTINGS else f"{heading} "
    found = [
        f"process {process}: {prefix}{name} is {_short(other, name)}, process 0 has {_short(first, name)}"
        for name in [*first, *(name for name in other if name not in first)]
        if first.get(name, _ABSENT) != other.get(name, _ABSENT)
    ]
    return found or [f"process {process}: {heading} come in another order than in process 0"]


def _short(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "none"
    text = str(values[name]) if isinstance(values[name], str) else json.dumps(values[name])
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(list(values.items())).encode()).hexdigest()
