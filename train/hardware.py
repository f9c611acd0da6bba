"""What accelerators can do at best, as their makers publish it."""

# Dense bfloat16 multiply-adds per second and device, each counted as two operations; by what JAX calls the device.
# Sources: cloud.google.com/tpu/docs, "System architecture" page of each version (v4: 275 per chip; v5e: 197; v5p: 459;
# v6e: 918 TFLOPS); NVIDIA's data sheets (A100: 312; L4: 121; L40S: 362; H100 SXM and H200: 989; B200: 2,250).
_PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Largest number of bfloat16 operations per second, or None where it is not known (such as a CPU's).

    Args:
      device_kind: as `jax.Device.device_kind` says it; NVIDIA's go on with form and memory.
    """
    names = [name for name in _PEAK if device_kind == name or device_kind.startswith((name + " ", name + "-"))]
    # "TPU v5 lite" also begins with "TPU v5".
    return _PEAK[max(names, key=len)] if names else None
