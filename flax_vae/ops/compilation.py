"""Compiling for less memory, and not twice: what programs that train or encode say to the compiler."""

import ctypes
import ctypes.util
import os
from pathlib import Path
from typing import Any

import jax

from flax_vae.convert.extras import install_command
from flax_vae.errors import UserError


def compiler_options(platform: str) -> dict[str, Any]:
    """Returns what to pass as `compiler_options` to `jax.jit` or to `Lowered.compile` on this platform.

    On a CPU XLA orders the operations for parallelism by default.  A training step then makes room for all parameters
    three times over: ordered for memory, FLUX.1's at 128 px takes 0.75 GB of temporaries instead of 1.37 and no longer.

    Args:
      platform: of the devices: `"cpu"`, `"gpu"` or `"tpu"`.
    """
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if platform == "cpu" else {}


def release_compiler_memory() -> None:
    """Gives the memory that compiling took back to the system, where the C library keeps it.

    glibc keeps what was freed for later, half a gigabyte after compiling a training step, while arrays are mapped
    anew.  Elsewhere this does nothing.
    """
    library = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(library), "malloc_trim", None) if library else None
    if trim is not None:
        trim(0)


def cache_compilations(folder: str | Path) -> None:
    """Keeps compiled programs in a folder, so that the next process with the same model and sizes need not compile.

    Call it before anything is compiled.  Programs that took less than a second are not kept.

    Args:
      folder: made if it is missing; may be shared by processes.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def require_devices() -> None:
    """Starts JAX on the devices of this machine; for commands, before they compute.

    Raises:
      UserError: If there are no devices of the platform that was asked for, or they cannot be used.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = next(iter(str(error).splitlines()), "") or "no such devices, or JAX is installed without them"
        raise UserError(
            f"JAX cannot use the devices of JAX_PLATFORMS={asked} ({reason}); unset it, set it to cpu, or install JAX "
            f"for them: {install_command('cuda13')}, or the extra tpu"
        ) from error
