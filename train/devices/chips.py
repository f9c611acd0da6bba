"""What accelerators can do at best, as their makers publish it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      flops: dense bfloat16 operations per second, a multiply-add being two.
      bandwidth: bytes per second between the chip and its memory; None where the name leaves it open.
      memory: bytes of that memory; None where the name leaves it open.
      dollars: an hour of it on demand, in the cheapest American region; None where nobody lists one.
    """

    flops: float
    bandwidth: float | None = None
    memory: float | None = None
    dollars: float | None = None


# By what JAX calls the device.  Sources: cloud.google.com/tpu/docs, "System architecture" page of each version, and
# cloud.google.com/tpu/pricing as of 2025; NVIDIA's data sheets, of the SXM form where there are several.
CHIPS = {
    "TPU v4": Chip(275e12, 1228e9, 32 * 2**30, 3.22),
    "TPU v5 lite": Chip(197e12, 819e9, 16 * 2**30, 1.20),
    "TPU v5e": Chip(197e12, 819e9, 16 * 2**30, 1.20),
    "TPU v5": Chip(459e12, 2765e9, 95 * 2**30, 4.20),
    "TPU v5p": Chip(459e12, 2765e9, 95 * 2**30, 4.20),
    "TPU v6 lite": Chip(918e12, 1640e9, 32 * 2**30, 2.70),
    "TPU v6e": Chip(918e12, 1640e9, 32 * 2**30, 2.70),
    "NVIDIA A100": Chip(312e12),
    "NVIDIA L40S": Chip(362e12, 864e9, 48e9),
    "NVIDIA L4": Chip(121e12, 300e9, 24e9),
    "NVIDIA H100": Chip(989e12),
    "NVIDIA H200": Chip(989e12, 4.8e12, 141e9),
    "NVIDIA B200": Chip(2250e12, 8e12),
}


def find_chip(device_kind: str) -> Chip | None:
    """What is published of a device, or None where nothing is known (such as of a CPU).

    Args:
      device_kind: as `jax.Device.device_kind` says it; NVIDIA's go on with form and memory.
    """
    names = [name for name in CHIPS if device_kind == name or device_kind.startswith((name + " ", name + "-"))]
    # "TPU v5 lite" also begins with "TPU v5".
    return CHIPS[max(names, key=len)] if names else None


def peak_flops(device_kind: str) -> float | None:
    """Largest number of bfloat16 operations per second, or None where it is not known."""
    chip = find_chip(device_kind)
    return chip and chip.flops
