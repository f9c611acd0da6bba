"""This machine: its name, and what it reaches at most in a matrix product, in a convolution and in a copy.

`python -m tests.benchmarks.machine jax | torch` prints one framework's ceilings as JSON, products in GFLOP/s and the
copy in GB/s, read and written.
"""

import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.process import cores

CALLS, SECONDS = 7, 2.0  # at least so many calls, for at least so long


def installed(name: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def packages() -> str:
    """Versions of what is compared."""
    names = [name for name in ("jax", "flax", "torch", "diffusers") if installed(name)]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def describe(device: str) -> str:
    """The processor (or the accelerator), its cores, Python and the packages."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    accelerator = "" if device == "cpu" else f", {device}"
    return f"{name}, {cores()} cores{accelerator}; Python {platform.python_version()}, {packages()}"


def device() -> str:
    """What JAX computes on: `"cpu"`, or the accelerator's name.  Asked in a process that ends, and frees it."""
    code = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind, sep='|')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    backend, kind = done.stdout.splitlines()[-1].split("|")
    return "cpu" if backend == "cpu" else f"{backend} {kind}"


def jax_ceilings() -> dict[str, float]:
    """Matrix product and convolution by XLA."""
    import jax
    import jax.numpy as jnp

    size, batch, dtype = _sizes(jax.default_backend() != "cpu")
    a = jnp.ones((size, size), dtype)
    x, kernel = jnp.ones((batch, 128, 128, 128), dtype), jnp.ones((3, 3, 128, 128), dtype)
    dimensions = ("NHWC", "HWIO", "NHWC")
    matmul = jax.jit(jnp.matmul)
    conv = jax.jit(lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=dimensions))
    copy = jax.jit(lambda x: x + 1)
    return _ceilings(
        size,
        batch,
        lambda: matmul(a, a).block_until_ready(),
        lambda: conv(x, kernel).block_until_ready(),
        lambda: copy(a).block_until_ready(),
        a.nbytes,
    )


def torch_ceilings() -> dict[str, float]:
    """The same by PyTorch, channels last."""
    import torch

    gpu = torch.cuda.is_available()
    size, batch, dtype = _sizes(gpu)
    kinds: dict[str, Any] = {"dtype": getattr(torch, dtype), "device": "cuda" if gpu else "cpu"}
    a = torch.ones(size, size, **kinds)
    x, kernel = torch.ones(batch, 128, 128, 128, **kinds), torch.ones(128, 128, 3, 3, **kinds)
    x, kernel = (t.contiguous(memory_format=torch.channels_last) for t in (x, kernel))
    wait = torch.cuda.synchronize if gpu else lambda: None
    torch.set_num_threads(cores())
    with torch.inference_mode():
        return _ceilings(
            size,
            batch,
            lambda: (a @ a, wait()),
            lambda: (torch.conv2d(x, kernel, padding=1), wait()),
            lambda: (a + 1, wait()),
            a.nbytes,
        )


def _sizes(accelerated: bool) -> tuple[int, int, str]:
    return (8192, 32, "bfloat16") if accelerated else (2048, 1, "float32")


def _ceilings(
    size: int, batch: int, matmul: Callable, conv: Callable, copy: Callable, size_bytes: int
) -> dict[str, float]:
    """The best of many calls each: a ceiling is what the machine can do when nothing disturbs it."""
    work = {
        "matmul": (2 * size**3, matmul),
        "conv": (2 * 9 * 128 * 128 * batch * 128**2, conv),
        "copy": (2 * size_bytes, copy),
    }
    return {name: amount / _shortest(call) / 1e9 for name, (amount, call) in work.items()}


def _shortest(call: Callable) -> float:
    taken: list[float] = []
    while len(taken) < CALLS or sum(taken) < SECONDS:
        taken.append(_seconds(call))
    return min(taken)


def _seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps({"jax": jax_ceilings, "torch": torch_ceilings}[sys.argv[1]]()))
