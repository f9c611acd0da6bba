"""Devices to plan for: TPU slices and GPUs that are not attached, or the devices of this machine."""

import os
import re
from dataclasses import dataclass
from typing import Any

import jax

from flax_vae.convert.errors import one_line
from flax_vae.convert.extras import install_command, is_installed
from flax_vae.train.devices import find_chip
from flax_vae.train.errors import TrainError

# Slices of the smallest sizes; other shapes that Google offers have the same form.
EXAMPLES = ("v4:2x2x1", "v4:2x2x2", "v5e:2x2", "v5e:4x4", "v5p:2x2x1", "v5p:2x2x2", "v6e:2x2", "v6e:4x4")
# Compiling needs no chips, so the machine's identity is not looked up, and other processes may have the library open.
_COMPILER_ALONE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
_NAME = re.compile(r"v\d+[a-z]*:\d+(x\d+){1,2}")
# JAX takes this share of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPU_SHARE = 0.75


@dataclass(frozen=True)
class Gpu:
    """What the compiler asks of a GPU, beside the figures in `flax_vae.train.devices.CHIPS`.

    Attributes:
      kind: JAX's name of the device.
      cores: Streaming multiprocessors.
      lanes: Arithmetic units of each for float32.
      capability: CUDA's compute capability.
      shared_memory: Bytes of shared memory of a multiprocessor.
      threads: Threads of a multiprocessor.
      cache: Bytes of the second-level cache.
      gigahertz: Clock rate.
    """

    kind: str
    cores: int
    lanes: int
    capability: tuple[int, int]
    shared_memory: int
    threads: int
    cache: int
    gigahertz: float

    @property
    def description(self) -> str:
        """Text of XLA's message `GpuTargetConfigProto`."""
        chip = find_chip(self.kind)
        assert chip is not None and chip.memory is not None and chip.bandwidth is not None
        major, minor = self.capability
        return f"""
            platform_name: "CUDA" device_description_str: "{self.kind}" dnn_version_info {{ major: 9 minor: 8 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              core_count: {self.cores} fpus_per_core: {self.lanes} clock_rate_ghz: {self.gigahertz}
              memory_bandwidth: {chip.bandwidth:.0f} device_memory_size: {chip.memory} l2_cache_size: {self.cache}
              shared_memory_per_core: {self.shared_memory} shared_memory_per_block: 49152
              shared_memory_per_block_optin: {self.shared_memory - 1024} threads_per_warp: 32
              threads_per_block_limit: 1024 threads_per_core_limit: {self.threads}
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
            }}"""


# One of each size, from NVIDIA's white papers of the architectures GA100 and GA102.
GPUS = {
    "gpu-16gb": Gpu("NVIDIA RTX A4000", 48, 128, (8, 6), 102_400, 1536, 4 * 2**20, 1.56),
    "gpu-24gb": Gpu("NVIDIA GeForce RTX 3090", 82, 128, (8, 6), 102_400, 1536, 6 * 2**20, 1.7),
    "gpu-80gb": Gpu("NVIDIA A100-SXM4-80GB", 108, 64, (8, 0), 167_936, 2048, 40 * 2**20, 1.41),
}


@dataclass(frozen=True)
class Target:
    """A set of equal devices.

    Attributes:
      name: Name of the slice, `v5e:4x4` for example, or a description of local devices.
      devices: JAX devices.
      kind: Kind of each device.
      memory: Bytes of memory of each; None if unknown.
      absent: Whether nothing can run on them here.
    """

    name: str
    devices: tuple[Any, ...]
    kind: str
    memory: int | None
    absent: bool = False

    @property
    def count(self) -> int:
        """Number of devices."""
        return len(self.devices)

    @property
    def hosts(self) -> int:
        """Number of processes of a run on them."""
        return len({device.process_index for device in self.devices})


def topology(name: str) -> Target:
    """Returns a slice of TPUs or a GPU for which this machine can compile without having one.

    Args:
      name: Generation and shape, `v5e:4x4` for example, or one of `GPUS`.

    Raises:
      TrainError: If the slice does not exist, or the compiler is not installed.
    """
    if name in GPUS:
        return _gpu(name)
    from jax.experimental import topologies  # imported here: planning for local devices does not need it

    if not _NAME.fullmatch(name):
        raise TrainError(
            f"topology={name!r} must be a generation and a shape, such as {' or '.join(EXAMPLES[2:4])}, or one of "
            f"{', '.join(GPUS)}"
        )
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
    return Target(name, devices, kind, None if chip is None or chip.memory is None else int(chip.memory), absent=True)


def _gpu(name: str) -> Target:
    """Returns one GPU, with the share of its memory that JAX takes."""
    from jax.experimental import topologies

    gpu = GPUS[name]
    try:
        devices = tuple(
            topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=gpu.description).devices
        )
    except Exception as error:  # as above
        if not any(map(is_installed, ("jax_cuda12_plugin", "jax_cuda13_plugin"))):
            raise TrainError(f"planning for {name} needs the GPU compiler: {install_command('cuda12')}") from error
        raise TrainError(f"topology={name!r} is not available ({one_line(error)})") from error
    chip = find_chip(gpu.kind)
    assert chip is not None and chip.memory is not None
    return Target(name, devices, gpu.kind, int(GPU_SHARE * chip.memory), absent=True)


def local() -> Target:
    """Returns all devices of this process."""
    devices = tuple(jax.local_devices())
    kind = devices[0].device_kind
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    return Target(f"{len(devices)} x {kind}", devices, kind, (stats or {}).get("bytes_limit"))
