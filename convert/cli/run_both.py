"""Runs an image through the Flax and the PyTorch model and compares every layer: `flax-vae-convert verify --run`.

The frameworks run in processes of their own, `flax_vae.trace` and `torch_ref.trace`; this package needs neither.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from flax_vae.convert.architecture import Architecture
from flax_vae.convert.console import TraceFlags, ended_with_this_process
from flax_vae.convert.errors import ConversionError
from flax_vae.convert.extras import install_command, is_installed
from flax_vae.convert.table import expand

FLAX, TORCH = "flax_vae.trace", "torch_ref.trace"

# In float32 rounding reaches about 1e-5 of a layer's RMS at published dimensions; a wrong weight shows from 1e-2 on.
TOLERANCE = 1e-3

# The layers of one block: they are one row of the report.
_INNER = {"norm1", "conv1", "time_mlp", "norm2", "conv2", "conv3", "nin_shortcut", "norm", "q", "k", "v", "proj_out"}


class Drift(NamedTuple):
    """Differences between the two models, in units of the RMS of PyTorch's output.

    Attributes:
      size: Height and width of the image.
      outputs: Differences of the latents and the reconstruction.
      blocks: Difference after each block, in order of execution: the largest of its layers.
      first: Name of the first layer that differs by more than `TOLERANCE`, or None.
    """

    size: tuple[int, int]
    outputs: dict[str, float]
    blocks: dict[str, float]
    first: str | None


def require_frameworks() -> None:
    """Checks that both frameworks are installed.

    Raises:
      ConversionError: If PyTorch is missing.
      ModuleNotFoundError: If JAX or Flax is missing.
    """
    if not is_installed("torch"):
        raise ConversionError(f"running both frameworks needs PyTorch, which is missing: {install_command('torch')}")
    for name in ("jax", "flax", "PIL"):
        if not is_installed(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def run_both(params: Architecture, commands: Mapping[str, TraceFlags]) -> Drift:
    """Runs both models in float32, at the mean of the posterior, and compares the files that they write.

    Args:
      params: Architecture of both.
      commands: Arguments of `FLAX` and of `TORCH`.

    Raises:
      ConversionError: If one of them fails, with its own sentence.
    """
    run_traces(commands)
    with np.load(commands[FLAX].out) as ours, np.load(commands[TORCH].out) as theirs:
        layers = layer_differences(params, ours, theirs)
        outputs = {name: difference(ours[name], theirs[name]) for name in ("latents", "images")}
        height, width = theirs["images"].shape[2:]
    blocks: dict[str, float] = {}
    for name, apart in layers:
        block, _, layer = name.rpartition(".")
        block = block if layer in _INNER else name
        blocks[block] = max(blocks.get(block, 0.0), apart)
    first = next((name for name, apart in layers if not apart <= TOLERANCE), None)
    return Drift((height, width), outputs, blocks, first)


def run_traces(commands: Mapping[str, TraceFlags]) -> None:
    """Runs modules side by side, each in a process that finds the packages where this one does.

    Args:
      commands: Arguments by the name of the module.

    Raises:
      ConversionError: If one of them fails; the others are ended.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with contextlib.ExitStack() as running:
        processes = {
            module: running.enter_context(
                ended_with_this_process(
                    # -P: a file in the working directory must not replace a package
                    [sys.executable, "-P", "-m", module, *flags.words()],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                )
            )
            for module, flags in commands.items()
        }
        for module, process in processes.items():
            _, printed = process.communicate()
            if process.returncode:
                raise ConversionError(_reason(module, process.returncode, printed))


def layer_differences(
    params: Architecture, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> list[tuple[str, float]]:
    """Returns the name of every layer that both traces hold, in PyTorch's order of execution, and its difference.

    Args:
      params: Architecture.
      ours: Trace of the Flax model.
      theirs: Trace of the PyTorch model.
    """
    layers = {row.theirs.rpartition(".")[0] for row in expand(params)}
    return [(name, difference(ours[name], theirs[name])) for name in theirs if name in layers and name in ours]


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Returns the largest absolute difference, in units of the RMS of `theirs`; NaN if any value is not finite.

    Raises:
      AssertionError: If the shapes differ.
    """
    ours, theirs = np.asarray(ours).astype(np.float64), np.asarray(theirs).astype(np.float64)
    assert ours.shape == theirs.shape, f"shapes differ: {ours.shape} and {theirs.shape}"
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        apart = np.abs(ours - theirs).max()
        return float(apart / np.sqrt(np.mean(theirs**2))) if apart else 0.0


def _reason(module: str, status: int, printed: str) -> str:
    """Returns one sentence for a process that failed: its own, the signal that ended it, or its last line."""
    if printed.startswith(f"{module}: "):
        return printed.removeprefix(f"{module}: ").rstrip("\n")
    if status < 0:
        name = signal.Signals(-status).name
        hint = "; if memory ran out, pass a smaller image" if name == "SIGKILL" else ""
        return f"python -m {module} was ended by {name}{hint}"
    last = printed.strip().rpartition("\n")[2] or f"exit status {status}"
    return f"python -m {module} failed: {last}"
