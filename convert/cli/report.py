"""The report of `flax-vae-convert verify MODEL --run PICTURE`: how well the two frameworks agree on a model.

It holds what somebody else needs to judge the result or to repeat it: hashes of the weights and of the picture,
versions and devices, and the errors of every layer.
"""

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flax_vae.convert.cli.run_both import EXACT_TOLERANCE, TOLERANCE, Drift, LayerErrors
from flax_vae.convert.table import Weights, fitting_presets

_PACKAGES = ("jax", "jaxlib", "flax", "torch", "numpy")
_CPU_INFO = Path("/proc/cpuinfo")


class TensorHash(NamedTuple):
    """SHA-256 of the numbers of one tensor, with its name in the `flux` layout, its dtype and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


class WeightHashes(NamedTuple):
    """Hashes of weights.

    Attributes:
      path: File or folder of the weights.
      description: Kind of the file, its layout and the presets that the weights fit.
      files: SHA-256 of the files by their names, as far as the weights are files.
      sha256: SHA-256 of all tensors, which does not depend on the layout; see `hash_weights`.
      tensors: Hash of each tensor, sorted by name.
    """

    path: Path
    description: str
    files: dict[str, str]
    sha256: str
    tensors: list[TensorHash]


def hash_weights(path: Path, kind: str, files: Iterable[Path], weights: Weights) -> WeightHashes:
    """Hashes every tensor in the `flux` layout, and all of them: the lines `name dtype shape sha256`, sorted by name.

    Args:
      path: File or folder of the weights.
      kind: Kind of the file or folder.
      files: Files that hold the weights.
      weights: Weights to hash.
    """
    tensors, whole = [], hashlib.sha256()
    for name, tensor in sorted(weights.to("flux").items()):
        array = np.ascontiguousarray(np.asarray(tensor))
        shape = tuple(tensor.shape)
        one = TensorHash(name, array.dtype.name, shape, hashlib.sha256(array.tobytes()).hexdigest())
        whole.update(f"{one.name} {one.dtype} {one.shape} {one.sha256}\n".encode())
        tensors.append(one)
    presets = " or ".join(fitting_presets(weights.params)) or "no preset"
    description = f"{kind}, layout {weights.layout}, fits {presets}"
    return WeightHashes(path, description, {file.name: _digest(file) for file in files}, whole.hexdigest(), tensors)


def describe_machine(devices: Sequence[str]) -> dict[str, str]:
    """Returns versions and devices by their names.

    Args:
      devices: Device of Flax and of PyTorch.
    """
    # Of the code that ran, which may be a clone that is not installed, or beside an installed release.
    versions = {"flax-vae": sys.modules["flax_vae"].__version__}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    found = {"versions": ", ".join(f"{name} {version}" for name, version in versions.items())}
    found["Python"] = f"{platform.python_version()} on {platform.platform()}"
    found["processor"] = _processor()
    return found | {"Flax ran on": devices[0], "PyTorch ran on": devices[1]}


def error_rows(errors: Mapping[str, LayerErrors], what: str) -> list[tuple[str, ...]]:
    """Returns a table of errors: a heading, then one row for each layer or block.

    Args:
      errors: Errors by name.
      what: Heading of the names.
    """
    rows = [(name, *(f"{error:.1e}" for error in found)) for name, found in errors.items()]
    return [(what, "Flax float32", "PyTorch float32", "Flax float64"), *rows]


def verdict(drift: Drift) -> str:
    """Returns one sentence: whether the frameworks agree, or where they first do not."""
    if drift.first is not None:
        return f"the first layer that diverges is {drift.first}"
    return f"every block agrees within {TOLERANCE:g} in float32 and {EXACT_TOLERANCE:g} in float64"


def report_text(
    title: str,
    weights: Sequence[WeightHashes],
    architecture: Mapping[str, object],
    picture: Path,
    drift: Drift,
    machine: Mapping[str, str],
) -> str:
    """Returns the text of a report in Markdown.

    Args:
      title: Title of the report.
      weights: Hashes of the weights of Flax, and of those of PyTorch if they come from another file.
      architecture: Architecture, as in `config.json`.
      picture: Picture that both frameworks encoded and decoded.
      drift: Result of the comparison.
      machine: Result of `describe_machine`.
    """
    height, width = drift.size
    about = []
    for one in weights:
        about += [("weights", f"`{one.path.name}`: {one.description}"), ("SHA-256 of all tensors", f"`{one.sha256}`")]
        about += [(f"SHA-256 of `{name}`", f"`{digest}`") for name, digest in one.files.items()]
    about += [("made on", f"{datetime.now(UTC):%Y-%m-%d}")]
    about += [("picture", f"`{picture.name}`, {height} x {width} pixels of it (height x width)")]
    about += [("SHA-256 of the picture", f"`{_digest(picture)}`"), *machine.items()]
    lines = [
        f"# {title}",
        "",
        f"{verdict(drift)[0].upper()}{verdict(drift)[1:]}.",
        "",
        *_table([("", ""), *about]),
        "",
        "## Errors",
        "",
        "Largest difference from PyTorch's output in float64, in units of its root mean square. The first two columns",
        "are rounding in float32; the last one compares the frameworks where there is nearly none.",
        "",
        *_table(error_rows(drift.errors, "layer")),
        "",
        "## Architecture",
        "",
        "```json",
        json.dumps(architecture, indent=2),
        "```",
    ]
    for one in weights:
        hashes = [(f"`{t.name}`", t.dtype, " x ".join(map(str, t.shape)), f"`{t.sha256}`") for t in one.tensors]
        lines += ["", f"## Tensors of `{one.path.name}`", "", *_table([("name", "dtype", "shape", "SHA-256"), *hashes])]
    return "\n".join(lines) + "\n"


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in rows]
    return [head, f"|{'---|' * len(rows[0])}", *body]


def _processor() -> str:
    """Returns the model of the processor."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
