"""Devices to plan for: TPU slices that are not attached, or the devices of this machine."""

import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from flax_vae.convert.extras import install_command, is_installed
from flax_vae.train.devices import find_chip
from flax_vae.train.errors import TrainError

# Slices of the smallest sizes; other shapes that Google offers have the same form.
EXAMPLES = ("v4:2x2x1", "v4:2x2x2", "v5e:2x2", "v5e:4x4", "v5p:2x2x1", "v5p:2x2x2", "v6e:2x2", "v6e:4x4")
# Compiling needs no chips, so the machine's identity is not looked up, and other processes may have the library open.
_COMPILER_ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_NAME = re.compile(r"v\d+[a-z]*:\d+(x\d+){1,2}")


@dataclass(frozen=True)
class Target:
    """A set of equal devices.

    Attributes:
      name: Name of the slice, `v5e:4x4` for example, or a description of local devices.
      devices: JAX devices.
      kind: Kind of each device.
      memory: Bytes of memory of each; None if unknown.
    """

    name: str
    devices: tuple[Any, ...]
    kind: str
    memory: int | None

    @property
    def count(self) -> int:
        """Number of devices."""
        return len(self.devices)

    @property
    def hosts(self) -> int:
        """Number of processes of a run on them."""
        return len({device.process_index for device in self.devices})


def topology(name: str) -> Target:
    """Returns a slice of TPUs for which this machine can compile without having one.

    Args:
      name: Generation and shape, `v5e:4x4` for example.

    Raises:
      TrainError: If the slice does not exist, or the compiler is not installed.
    """
    from jax.experimental import topologies  # imported here: planning for local devices does not need it

    if not _NAME.fullmatch(name):
        raise TrainError(f"topology={name!r} must be a generation and a shape, such as {' or '.join(EXAMPLES[2:4])}")
    for variable, value in _COMPILER_ALONE.items():
        os.environ.setdefault(variable, value)
    try:
        devices = tuple(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # the plugin's exceptions differ between versions
        if not is_installed("libtpu"):
            raise TrainError(f"planning for {name} needs the TPU compiler: {install_command('tpu')}") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        known = ", ".join(EXAMPLES)
        raise TrainError(f"topology={name!r} is not available ({reason}); expected one of {known}") from error
    kind = devices[0].device_kind
    chip = find_chip(kind)
    return Target(name, devices, kind, None if chip is None or chip.memory is None else int(chip.memory))


def local() -> Target:
    """Returns all devices of this process."""
    devices = tuple(jax.local_devices())
    kind = devices[0].device_kind
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    return Target(f"{len(devices)} x {kind}", devices, kind, (stats or {}).get("bytes_limit"))
