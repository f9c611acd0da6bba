"""The command `flax-vae-convert`.

The first word chooses: `inspect` and `table` are commands of their own, anything else is the SRC of a conversion.
"""

import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from convert.architecture import AutoEncoderParams
from convert.errors import ConversionError, FileError
from convert.files import list_tensors, read_tensors, write_tensors
from convert.folder import CONFIG, LAYOUT, WEIGHTS, load_folder, save_folder
from convert.presets import PRESETS
from convert.table import LAYOUTS, expand, to_flax, to_torch

PROG = "flax-vae-convert"

if TYPE_CHECKING:
    Layout = str
    Preset = str
else:  # tyro lists the choices and refuses anything else
    Layout = Literal[LAYOUTS]
    Preset = Literal[tuple(PRESETS)]


@dataclass(frozen=True)
class Convert:
    """Converts the weights of an autoencoder; every tensor is checked, and every bit is kept.

    Other commands (a SRC of one of these names is written ./inspect):
      flax-vae-convert inspect FILE       lists the tensors of a file
      flax-vae-convert table --preset P   shows the name of every weight in PyTorch and in Flax

    Attributes:
      src: a model folder, or a safetensors file with --preset
      dst: a name that ends in .safetensors for one file, any other for a model folder
      to: the names of the tensors in DST
      preset: the architecture, where SRC has no config.json that says it
      force: replace DST if it exists
    """

    src: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    to: Layout
    preset: Annotated[Preset | None, tyro.conf.arg(metavar=f"{{{','.join(PRESETS)}}}")] = None
    force: bool = False

    def run(self) -> None:
        """Reads, checks, converts and writes."""
        into_file = self.dst.suffix == ".safetensors"
        if not into_file and self.to != LAYOUT:
            raise ConversionError(
                f"a model folder is always in the {LAYOUT!r} layout; for {self.to!r} call DST {self.dst}.safetensors"
            )
        params, state_dict = _read(self.src, self.preset)
        converted = to_torch(to_flax(state_dict, params), params, layout=self.to)
        if into_file:
            write_tensors(self.dst, converted, metadata={"format": "pt"}, force=self.force)
        else:
            save_folder(self.dst, params, converted, force=self.force)
        print(f"{self.dst}: {_summary(converted.values())}")


@dataclass(frozen=True)
class Inspect:
    """Lists the tensors of a safetensors file or of a model folder.

    Attributes:
      file: the file or the folder
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]

    def run(self) -> None:
        """Prints the list."""
        tensors = list_tensors(self.file / WEIGHTS if self.file.is_dir() else self.file)
        _print_columns(
            [("name", "shape", "dtype"), *((name, info.shape, info.dtype) for name, info in tensors.items())]
        )
        print(_summary(tensors.values()))


@dataclass(frozen=True)
class Table:
    """Shows every weight of an architecture: its name and shape in Flax and in PyTorch, and the operation between them.

    Attributes:
      preset: the architecture
      layout: which of the names that PyTorch models use
    """

    preset: Preset
    layout: Layout = LAYOUT

    def run(self) -> None:
        """Prints the table."""
        rows = expand(PRESETS[self.preset], self.layout)
        heads = ("flax", "shape", self.layout, "shape", "from there to Flax")
        _print_columns([heads, *((row.ours, row.shape, row.theirs, row.torch_shape, row.op.name) for row in rows)])
        print(f"{len(rows):,} tensors, {sum(math.prod(row.shape) for row in rows):,} numbers")


COMMANDS = {"inspect": Inspect, "table": Table}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, or 1 for bad input.

    Args:
      args: the words after the program's name; None takes those of the process.

    Raises:
      SystemExit: 2 for a misused command line, 0 after `--help`.
    """
    words = list(sys.argv[1:] if args is None else args)
    command, prog = Convert, PROG
    if words and words[0] in COMMANDS:
        command, prog = COMMANDS[words[0]], f"{PROG} {words.pop(0)}"
    try:
        tyro.cli(command, prog=prog, args=words, config=(tyro.conf.FlagCreatePairsOff,)).run()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a listing has seen enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ConversionError, FileError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    return 0


def _read(src: Path, name: str | None) -> tuple[AutoEncoderParams, dict[str, np.ndarray]]:
    if not src.exists():
        raise FileNotFoundError(f"{src} does not exist; give a model folder or a safetensors file")
    if src.is_dir() or (src.name == WEIGHTS and src.with_name(CONFIG).exists()):
        params, state_dict = load_folder(src)
        if name is not None and PRESETS[name] != params:
            raise ConversionError(f"{src} is not of preset {name}: {_difference(params, name)}; leave out --preset")
        return params, state_dict
    if name is None:
        raise ConversionError(f"{src} does not say which architecture it holds; add --preset ({', '.join(PRESETS)})")
    return PRESETS[name], read_tensors(src)


def _difference(params: AutoEncoderParams, name: str) -> str:
    ours, theirs = params.to_dict(), PRESETS[name].to_dict()
    return ", ".join(
        f"{field} is {ours[field]!r}, not {theirs[field]!r}" for field in ours if ours[field] != theirs[field]
    )


def _summary(tensors: Iterable) -> str:
    """Counts tensors and numbers of anything that has a shape and a dtype."""
    tensors = list(tensors)
    kinds = Counter(str(tensor.dtype) for tensor in tensors)
    dtypes = ", ".join(dtype if len(kinds) == 1 else f"{count:,} x {dtype}" for dtype, count in kinds.most_common())
    numbers = sum(math.prod(tensor.shape) for tensor in tensors)
    return f"{len(tensors):,} tensors, {numbers:,} numbers, {dtypes or 'empty'}"


def _print_columns(rows: Sequence[Sequence[object]]) -> None:
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
