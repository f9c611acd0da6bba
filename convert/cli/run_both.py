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
# In float64 it reaches 1e-12.
TOLERANCE, EXACT_TOLERANCE = 1e-3, 1e-9

# The layers of one block: they are one row of the report.
_INNER = {"norm1", "conv1", "time_mlp", "norm2", "conv2", "conv3", "nin_shortcut", "norm", "q", "k", "v", "proj_out"}

_OUTPUTS = ("latents", "images")


class LayerErrors(NamedTuple):
    """Largest errors of one output, in units of the RMS of PyTorch's output in float64, which counts as exact.

    Attributes:
      flax: Error of Flax in float32.
      torch: Error of PyTorch in float32.
      exact: Difference between Flax and PyTorch in float64.
    """

    flax: float
    torch: float
    exact: float


class Drift(NamedTuple):
    """Differences between the two models, in units of the RMS of PyTorch's output.

    Attributes:
      size: Height and width of the image.
      outputs: Differences of the latents and the reconstruction in float32.
      blocks: Difference after each block in float32, in order of execution: the largest of its layers.
      errors: Errors against float64, of each layer and of the two outputs.
      first: Name of the first layer that differs by more than `TOLERANCE` in float32 or `EXACT_TOLERANCE` in float64,
        or None.
      devices: Device of Flax and of PyTorch.
    """

    size: tuple[int, int]
    outputs: dict[str, float]
    blocks: dict[str, float]
    errors: dict[str, LayerErrors]
    first: str | None
    devices: tuple[str, str]


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
    """Runs both models, at the mean of the posterior, and compares the files that they write.

    Args:
      params: Architecture of both.
      commands: Arguments of `FLAX` and of `TORCH`, with files for float64.

    Raises:
      ConversionError: If one of them fails, with its own sentence.
    """
    run_traces(commands)
    with contextlib.ExitStack() as open_files:
        ours, theirs, our_exact, exact = (
            open_files.enter_context(np.load(commands[module].outputs()[dtype]))
            for dtype in ("float32", "float64")
            for module in (FLAX, TORCH)
        )
        apart: dict[str, float] = {}
        errors: dict[str, LayerErrors] = {}
        for name in (*layer_names(params, ours, theirs), *_OUTPUTS):
            mine, its, truth = ours[name], theirs[name], exact[name]
            apart[name] = difference(mine, its)
            compared = (mine, its, our_exact[name])
            errors[name] = LayerErrors(*(difference(array, truth) for array in compared))
        height, width = theirs["images"].shape[2:]
        devices = (str(ours["device"]), str(theirs["device"]))
    layers = [name for name in apart if name not in _OUTPUTS]
    blocks: dict[str, float] = {}
    for name in layers:
        blocks[block_of(name)] = _largest(blocks.get(block_of(name), 0.0), apart[name])
    first = next(
        (name for name in layers if not (apart[name] <= TOLERANCE and errors[name].exact <= EXACT_TOLERANCE)), None
    )
    return Drift((height, width), {name: apart[name] for name in _OUTPUTS}, blocks, errors, first, devices)


def block_of(layer: str) -> str:
    """Returns the name of the block that a layer is part of; that of the layer itself if it stands alone."""
    block, _, inner = layer.rpartition(".")
    return block if inner in _INNER else layer


def largest_by_block(errors: Mapping[str, LayerErrors]) -> dict[str, LayerErrors]:
    """Returns the largest errors of the layers of each block."""
    blocks: dict[str, LayerErrors] = {}
    for name, found in errors.items():
        blocks[block_of(name)] = LayerErrors(*map(_largest, blocks.get(block_of(name), found), found))
    return blocks


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
    return [(name, difference(ours[name], theirs[name])) for name in layer_names(params, ours, theirs)]


def layer_names(params: Architecture, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the names of the layers that both traces hold, in PyTorch's order of execution."""
    layers = {row.theirs.rpartition(".")[0] for row in expand(params)}
    return [name for name in theirs if name in layers and name in ours]


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


def _largest(one: float, other: float) -> float:
    """Returns the larger number, or NaN if either is NaN, which `max` ignores as its second argument."""
    return float(np.maximum(one, other))


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
