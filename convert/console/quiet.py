"""Hides messages of JAX, libtpu and orbax that a user of the commands cannot act on.

A library must not do this to the program that imports it, so only the commands call it.
"""

import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from flax_vae.convert.extras import is_installed

# Each says that a TPU is meant, or which backends are: JAX is then left as it is.
_CHOSEN = ("JAX_PLATFORMS", "JAX_FORCE_TPU_INIT", "TPU_LIBRARY_PATH", "TPU_NAME", "TPU_WORKER_ID")
_TPU_FILES = ("accel*", "vfio/[0-9]*")


def quiet_libraries(*, tpu_compiler: bool = False) -> None:
    """Silences notes of libraries to their own developers, in this process; call it before JAX is imported.

    Where libtpu is installed and this machine has no TPU, JAX does not find libtpu: it would load it, and libtpu would
    search for a TPU and write four warnings.

    Args:
      tpu_compiler: The command compiles for TPUs that are elsewhere, and needs libtpu for it.
    """
    for name in ("absl", "asyncio"):  # orbax and its event loops: the first error arrives as an exception too
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # what orbax then leaves
    if getattr(sys.unraisablehook, "func", None) is not _without_closed_loops:
        sys.unraisablehook = partial(_without_closed_loops, sys.unraisablehook)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of XLA: errors alone
    if not tpu_compiler and "libtpu" not in sys.modules and not _may_have_tpu() and is_installed("libtpu"):
        sys.modules["libtpu"] = None  # type: ignore[assignment] - an import of it raises ImportError


def _without_closed_loops(before: Any, unraisable: Any) -> None:
    """Leaves out what tensorstore reports for each array that is not written after one could not be."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        before(unraisable)


def _may_have_tpu() -> bool:
    """Whether a TPU was asked for or is attached, which shows as a file."""
    return any(name in os.environ for name in _CHOSEN) or any(any(Path("/dev").glob(name)) for name in _TPU_FILES)
