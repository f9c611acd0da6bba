"""Compiler options, the compilation cache, and the devices of commands."""

import contextlib
import ctypes
import ctypes.util
import errno
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import jax

from flax_vae.convert.console import OFF, available_cpus, printable
from flax_vae.convert.extras import install_command
from flax_vae.convert.files import cache_folder
from flax_vae.errors import UserError

# Programs that no process has read for this long are removed from the user's cache folder.
UNUSED_SECONDS = 30 * 24 * 3600


def compiler_options(platform: str) -> dict[str, Any]:
    """Returns `compiler_options` for `jax.jit` or `Lowered.compile` on a platform.

    On a CPU, XLA orders operations for parallelism by default, and a training step then allocates all parameters three
    times.  Ordered for memory, a step of FLUX.1 at 128 px needs 0.75 GB of temporaries instead of 1.37, and is as fast.

    Args:
      platform: Platform of the devices: `"cpu"`, `"gpu"` or `"tpu"`.
    """
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if platform == "cpu" else {}


def release_compiler_memory() -> None:
    """Returns the memory that compiling used to the system.

    glibc keeps freed memory, half a gigabyte after compiling a training step, and does not use it for arrays.  With
    another C library this does nothing.
    """
    library = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(library), "malloc_trim", None) if library else None
    if trim is not None:
        trim(0)


def cache_compilations(folder: str | Path) -> None:
    """Stores compiled programs in a folder, so that later processes with the same model and sizes do not compile.

    Call it before anything is compiled.  Programs that compiled in less than a second are not stored.

    Args:
      folder: Folder of the programs, created if missing; several processes may share it.

    Raises:
      OSError: If the folder cannot be created, read or written.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def cache_for_command(chosen: str | None) -> None:
    """Stores the compiled programs of a command; called before anything is compiled.

    Without a choice they are stored where `JAX_COMPILATION_CACHE_DIR` says, or else in the user's cache folder, which a
    line on stderr names when it is created.  If that folder cannot be written, programs are not stored.

    Args:
      chosen: Folder, `"off"` to neither store programs nor read stored ones, or None.

    Raises:
      OSError: If the chosen folder cannot be created, read or written.
    """
    if chosen == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
    elif chosen is not None:
        cache_compilations(chosen)
    elif "JAX_COMPILATION_CACHE_DIR" not in os.environ and not _jax_stores_programs():
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: the user has no home folder
            folder = _user_cache_folder()
            new = not folder.parent.exists()
            cache_compilations(folder)
            _remove_unused(folder.parent)
            if new:
                where = printable(folder.parent)
                print(f"compiled programs are stored in {where}; --compilation-cache off avoids it", file=sys.stderr)


def _jax_stores_programs() -> bool:
    """Returns whether the user or a calling program has decided on JAX's cache."""
    config: Any = jax.config
    return config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache


def _user_cache_folder() -> Path:
    """Returns a folder for the programs of machines like this one.

    Several machines may share a home folder.  A program for a CPU is compiled for its instructions and the number of
    its cores, of which JAX's cache distinguishes only the first.
    """
    return cache_folder() / "programs" / f"{available_cpus()}-cores"


def _remove_unused(folder: Path) -> None:
    oldest = time.time() - UNUSED_SECONDS  # noqa: TID251 - the clock of files
    for file in folder.glob("*/*"):
        with contextlib.suppress(OSError):  # another process may remove it too
            read = file.stat()
            if max(read.st_atime, read.st_mtime) < oldest:
                file.unlink()


class CompileClock:
    """Notes, in a `with` block, when JAX last compiled a program in this thread, or read one from its cache.

    Attributes:
      last: Time of `time.monotonic()` at the end of that; minus infinity if there was none.
    """

    _EVENT = "/jax/core/compile/backend_compile_duration"

    def __init__(self):
        self.last = -math.inf

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *unused: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == self._EVENT and threading.get_ident() == self._thread:
            self.last = time.monotonic()


def require_devices() -> None:
    """Starts JAX on the devices of this machine.  Commands call it before they compute.

    Raises:
      UserError: If the requested platform has no devices, or they cannot be used.
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
