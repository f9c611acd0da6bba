"""Peak performance of accelerators, as published by their makers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Published figures of one accelerator.

    Attributes:
      flops: Operations per second in bfloat16 without sparsity; a multiply-add counts as two.
      bandwidth: Memory bandwidth in bytes per second; None if the name does not determine it.
      memory: Memory in bytes; None if the name does not determine it.
      dollars: Price per hour on demand, in the cheapest American region; None if unknown.
    """

    flops: float
    bandwidth: float | None = None
    memory: float | None = None
    dollars: float | None = None


# By JAX's name of the device.  Sources: cloud.google.com/tpu/docs, "System architecture" page of each version, and
# cloud.google.com/tpu/pricing as of 2025; NVIDIA's data sheets, of the SXM form where no other is named.
CHIPS = {
    "TPU v4": Chip(275e12, 1228e9, 32 * 2**30, 3.22),
    "TPU v5 lite": Chip(197e12, 819e9, 16 * 2**30, 1.20),
    "TPU v5e": Chip(197e12, 819e9, 16 * 2**30, 1.20),
    "TPU v5": Chip(459e12, 2765e9, 95 * 2**30, 4.20),
    "TPU v5p": Chip(459e12, 2765e9, 95 * 2**30, 4.20),
    "TPU v6 lite": Chip(918e12, 1640e9, 32 * 2**30, 2.70),
    "TPU v6e": Chip(918e12, 1640e9, 32 * 2**30, 2.70),
    "NVIDIA RTX A4000": Chip(76.7e12, 448e9, 16 * 2**30),
    "NVIDIA GeForce RTX 3090": Chip(71e12, 936e9, 24 * 2**30),
    "NVIDIA A100": Chip(312e12),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2039e9, 80 * 2**30),
    "NVIDIA L40S": Chip(362e12, 864e9, 48e9),
    "NVIDIA L4": Chip(121e12, 300e9, 24e9),
    "NVIDIA H100": Chip(989e12),
    "NVIDIA H100 PCIe": Chip(756e12),
    "NVIDIA H100 NVL": Chip(835e12),
    "NVIDIA H200": Chip(989e12, 4.8e12, 141e9),
    "NVIDIA B200": Chip(2250e12, 8e12),
}


def find_chip(device_kind: str) -> Chip | None:
    """Returns the published figures of a device, or None if there are none (as for a CPU).

    Args:
      device_kind: Value of `jax.Device.device_kind`; NVIDIA's also contain form and memory.
    """
    names = [name for name in CHIPS if device_kind == name or device_kind.startswith((name + " ", name + "-"))]
    # "TPU v5 lite" also begins with "TPU v5".
    return CHIPS[max(names, key=len)] if names else None


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak number of operations per second, in bfloat16 without sparsity; None if unknown.

    Args:
      device_kind: Name of the device, `jax.Device.device_kind`.
    """
    chip = find_chip(device_kind)
    return chip and chip.flops
