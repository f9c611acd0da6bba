"""The command `flax-vae-convert`.

The first argument chooses the command: `inspect`, `verify` or `table`; anything else is the SRC of a conversion.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from flax_vae.convert.architecture import Architecture, preset
from flax_vae.convert.cli.inspect import inspect, summary
from flax_vae.convert.cli.report import describe_machine, error_rows, hash_weights, report_text, verdict
from flax_vae.convert.cli.run_both import FLAX, TORCH, largest_by_block, require_frameworks, run_both
from flax_vae.convert.cli.verify import compare_weights
from flax_vae.convert.console import (
    NONE,
    Preset,
    Progress,
    ReadFlags,
    Section,
    TraceFlags,
    WeightsFlags,
    escaped_output,
    guard,
    parse_flags,
    quiet_libraries,
)
from flax_vae.convert.errors import ConversionError, shorten, shorten_lines
from flax_vae.convert.files import atomic_file, finite_json, scratch_folder
from flax_vae.convert.formats import cast
from flax_vae.convert.table import LAYOUTS, READABLE, TINY_LAYOUTS, Weights, expand, identify
from flax_vae.convert.weights import (
    WeightFile,
    open_weights,
    read_any_config,
    resolve_architecture,
    save_weights,
)

PROG = "flax-vae-convert"
SHOWN = 10  # lines or names shown of a long list

if TYPE_CHECKING:
    Layout = str
    AnyLayout = str
else:  # tyro lists the choices and checks them
    Layout = Literal[tuple(dict.fromkeys((*LAYOUTS, *TINY_LAYOUTS)))]
    AnyLayout = Literal[tuple(dict.fromkeys((*READABLE, *TINY_LAYOUTS)))]


@dataclass(frozen=True)
class SourceFlags(WeightsFlags):
    """What is read from SRC."""

    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=NONE)] = None
    """Architecture as a config.json, of flax-vae or of diffusers."""


@dataclass(frozen=True)
class WriteFlags:
    """What is written to DST."""

    to: Layout
    """Layout of the tensor names in DST."""
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        arg(metavar="{float32,bfloat16,float16}", help_behavior_hint=NONE),
    ] = None
    """Dtype to round to; by default every bit is kept."""
    to_prefix: Annotated[str, arg(metavar="STR", help_behavior_hint=NONE)] = ""
    """Prefix of every name in the written file, such as first_stage_model."""
    force: bool = False
    """Replace DST if it exists."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Convert:
    """Converts the weights of an autoencoder; checks every tensor and keeps every bit.

    Other commands (for a SRC of one of these names, write ./inspect):
      flax-vae-convert inspect FILE       describes the content of a file
      flax-vae-convert verify A B         compares the weights of two files
      flax-vae-convert table --preset P   lists the name of every weight in Flax and in each layout
    """

    src: Annotated[Positional[Path], arg(metavar="SRC")]
    """File or folder of weights: safetensors (whole or in shards), a PyTorch or Lightning checkpoint (also of a whole
    Stable Diffusion model), a diffusers folder, a model folder, a training checkpoint, the two files of a tiny
    autoencoder; or hf:org/name[/folder or file][@revision] on the Hugging Face hub."""
    dst: Annotated[Positional[Path], arg(metavar="DST")]
    """File to write, if it ends in .safetensors or .sft; else a folder (flux, diffusers, diffusers-flax, taesd)."""
    output: Section[WriteFlags]
    weights: Section[SourceFlags] = SourceFlags()

    def run(self) -> int:
        """Reads, checks, converts and writes the weights."""
        output, flags = self.output, self.weights
        source = _open(self.src, flags)
        if source.path.is_dir() and self.dst.resolve().is_relative_to(source.path.resolve()):
            raise ConversionError(f"{self.dst} lies inside {source.path}, the source; choose another place")
        weights = resolve_architecture(source, _architecture(flags.preset, flags.config), flags.prefix)
        before = summary(weights.tensors.values())
        after = summary((cast(weights.tensors, output.dtype) if output.dtype else weights.tensors).values())
        with Progress(len(weights.tensors), unit="tensors") as progress:
            save_weights(
                self.dst,
                weights,
                output.to,
                dtype=output.dtype,
                prefix=output.to_prefix,
                force=output.force,
                progress=lambda done, _: progress.add(done - progress.done),
            )
        rounded = before["dtypes"] if before["dtypes"] != after["dtypes"] else None
        if output.json:
            report = {"dst": str(self.dst), "layout": output.to, "src": str(source.path), "src_layout": weights.layout}
            report |= {"src_prefix": weights.prefix, "left_out": list(weights.left_out), "rounded_from": rounded}
            report |= {"averaged": source.averaged} | after
            print(json.dumps(report | {"architecture": weights.params.to_dict()}))
            return 0
        print(f"{self.dst}: {_counted(after)}")
        if source.averaged is not None:
            print(f"taken from {self.src}: {_AVERAGED[source.averaged]}")
        if rounded:
            print(f"rounded: {_dtypes(rounded)} became {_dtypes(after['dtypes'])}")
        if weights.prefix:
            print(f"taken from under {weights.prefix!r}")
        if weights.left_out:
            print(f"left out of {self.src}: {_some(weights.left_out)}")
        if output.to.startswith("diffusers") and not getattr(weights.params, "clamp_logvar", True):
            print("clamp_logvar is False, but diffusers limits logvar to [-30, 20]: samples may differ beyond that")
        return 0


@dataclass(frozen=True)
class ReportFlags:
    """What is printed."""

    tensors: bool = False
    """List every tensor."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Inspect:
    """Describes the content of a file or folder: layout, architecture, dtypes, and any problems.

    The exit code is 1 if it holds no autoencoder of this family, or values that are not finite.
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """File or folder of weights, as the SRC of a conversion."""
    weights: Section[ReadFlags] = ReadFlags()
    report: Section[ReportFlags] = ReportFlags()

    def run(self) -> int:
        """Prints the report."""
        source = _open(self.file, self.weights)
        report = inspect(source, self.weights.prefix)
        if self.report.json:
            listed = {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in source.tensors.items()}
            print(json.dumps(report | ({"all_tensors": listed} if self.report.tensors else {})))
        else:
            if self.report.tensors:
                rows = [(name, tuple(t.shape), t.dtype) for name, t in source.tensors.items()]
                _print_columns([("name", "shape", "dtype"), *rows])
                print()
            _print_report(report)
        return 1 if report["problem"] or report["non_finite"] else 0


@dataclass(frozen=True)
class ComparisonFlags:
    """What is compared and printed."""

    run: Annotated[Path | None, arg(metavar="PICTURE", help_behavior_hint=NONE)] = None
    """Image to run through the models of both frameworks; needs the architecture."""
    report: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint=NONE)] = None
    """File to write the result of --run to, in Markdown, with hashes of the weights, versions and devices."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class Verify:
    """Checks that two files or folders hold the same weights, bit for bit, in any layouts.

    With --run, also runs the models of both frameworks, in float32 and in float64, and compares every block: Flax with
    A, PyTorch with B, or with A if B is left out.  The exit code is 1 if anything differs.  Use a small picture: for
    each of its pixels FLUX.1 needs about 0.1 MB of temporary disk space.

    The prefix and the variant are those of A.
    """

    a: Annotated[Positional[Path], arg(metavar="A")]
    """File or folder of weights, as the SRC of a conversion."""
    b: Annotated[Positional[Path | None], arg(metavar="B", help_behavior_hint=NONE)] = None
    """File or folder to compare with."""
    weights: Section[WeightsFlags] = WeightsFlags()
    report: Section[ComparisonFlags] = ComparisonFlags()

    def run(self) -> int:
        """Compares the weights and prints the differences."""
        if self.b is None and self.report.run is None:
            raise ConversionError("nothing to compare with A; pass B, or --run PICTURE, or both")
        if self.report.report is not None:
            if self.report.run is None:
                raise ConversionError("--report writes the result of --run; pass --run PICTURE too")
            if self.report.report.exists():
                raise FileExistsError(f"{self.report.report} exists already; choose another name for the report")
        report: dict[str, Any] = {"same": True}
        lines: list[str] = []
        if self.b is not None:
            self._compare(self.b, report, lines)
        if self.report.run is not None:
            self._run_both(self.report.run, report, lines)
        print(json.dumps(finite_json(report), allow_nan=False) if self.report.json else "\n".join(lines))
        return 0 if report["same"] else 1

    @property
    def _of_b(self) -> WeightsFlags:
        return replace(self.weights, prefix=None, variant=None)

    def _compare(self, other: Path, report: dict[str, Any], lines: list[str]) -> None:
        a = _identify(_open(self.a, self.weights), self.weights)
        b = _identify(_open(other, self._of_b), self._of_b)
        count, differences = compare_weights(a, b)
        report |= {"same": not differences, "tensors": count, "differences": [d._asdict() for d in differences]}
        if not differences:
            lines.append(f"the same weights, bit for bit: {count:,} tensors ({a.layout} and {b.layout})")
            return
        lines.append(f"not the same: {len(differences):,} differences in {count:,} tensors")
        told = [
            f"  {name}: {what}" + ("" if largest is None else f", at most {largest:.3g} apart")
            for name, what, largest in differences
        ]
        lines += shorten_lines(told, SHOWN)

    def _run_both(self, picture: Path, report: dict[str, Any], lines: list[str]) -> None:
        params = _architecture(self.weights.preset)
        file_a = _open(self.a, self.weights)
        file_b = None if self.b is None else _open(self.b, self._of_b)
        a = resolve_architecture(file_a, params, self.weights.prefix)
        b = a if file_b is None else resolve_architecture(file_b, params)
        require_frameworks()
        if a.params.differences(b.params):
            raise ConversionError("A and B have different architectures, so their layers cannot be compared")
        with scratch_folder() as folder:
            weights = replace(self.weights, variant=None)
            flags = TraceFlags(file_a.path, picture, folder / "flax.npz", folder / "flax_float64.npz", weights)
            twin = replace(flags, out=folder / "torch.npz", exact=folder / "torch_float64.npz")
            if file_b is not None:
                twin = replace(twin, model=file_b.path, weights=self._of_b)
            drift = run_both(a.params, {FLAX: flags, TORCH: twin})
        hashes = [
            hash_weights(file.path, file.kind, file.files, weights)
            for file, weights in ((file_a, a), (file_b, b))
            if file is not None
        ]
        machine = describe_machine(drift.devices)
        told = drift._asdict() | {"errors": {name: errors._asdict() for name, errors in drift.errors.items()}}
        report |= {"run": told, "same": report["same"] and drift.first is None, "machine": machine}
        report |= {"weights_sha256": [one.sha256 for one in hashes]}
        height, width = drift.size
        lines.append(f"{height} x {width} pixels; largest error against PyTorch in float64, of the output's RMS:")
        rows = error_rows(largest_by_block(drift.errors), "block")
        lines += [f"  {row[0]:40}" + "".join(f"{cell:>17}" for cell in row[1:]) for row in rows]
        lines.append(verdict(drift))
        lines += [f"SHA-256 of the tensors of {one.path}: {one.sha256}" for one in hashes]
        lines += [f"{name}: {value}" for name, value in machine.items()]
        if self.report.report is not None:
            text = report_text(self.report.report.stem, hashes, a.params.to_dict(), picture, drift, machine)
            with atomic_file(self.report.report) as file:
                file.write_text(text, encoding="utf-8")
            lines.append(f"report: {self.report.report}")


@dataclass(frozen=True)
class TableFlags:
    """What is listed."""

    preset: Preset
    """Architecture."""
    layout: tuple[AnyLayout, ...] = ("flux",)
    """Layout of the names, one or several."""


@dataclass(frozen=True)
class Table:
    """Lists every weight of an architecture: name and shape in Flax and PyTorch, and the operation between them."""

    table: Section[TableFlags]

    def run(self) -> int:
        """Prints the table."""
        tables = [expand(preset(self.table.preset), layout) for layout in self.table.layout]
        heads = ["flax", "shape"]
        for layout in self.table.layout:
            heads += [layout, "shape", "from there to Flax"]
        lines: list[list[object]] = []
        for rows in zip(*tables, strict=True):
            lines.append([rows[0].ours, rows[0].shape])
            for row in rows:
                lines[-1] += [row.theirs, row.torch_shape, row.op.name]
        _print_columns([heads, *lines])
        print(f"{len(lines):,} tensors, {sum(math.prod(row.shape) for row in tables[0]):,} numbers")
        return 0


_AVERAGED = {
    True: "the moving average of the weights; --raw-weights takes the weights themselves",
    False: "the weights themselves, not their moving average",
}

COMMANDS = {"inspect": Inspect, "verify": Verify, "table": Table}


@escaped_output()
def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
      args: Arguments after the program's name; None takes those of the process.

    Returns:
      0; or 1 for invalid input, and if `inspect` or `verify` found a problem.

    Raises:
      SystemExit: With code 2 for an invalid command line, 0 after `--help`.
    """
    words = list(sys.argv[1:] if args is None else args)
    quiet_libraries()  # `verify --run` loads JAX
    command, prog = Convert, PROG
    if words and words[0] in COMMANDS:
        command, prog = COMMANDS[words[0]], f"{PROG} {words.pop(0)}"
    return guard(
        prog,
        lambda: parse_flags(command, prog=prog, args=words).run(),
        words=words,
    )


def _architecture(name: str | None, config: Path | None = None) -> Architecture | None:
    if config is None:
        return None if name is None else preset(name)
    if name is not None:
        raise ConversionError("--preset and --config both give the architecture; pass only one of them")
    if not config.is_file():
        raise FileNotFoundError(f"{config} is not a file; pass a config.json of flax-vae or of diffusers")
    return read_any_config(config)


def _identify(source: WeightFile, flags: WeightsFlags) -> Weights:
    """Identifies the weights for a comparison, which does not need scale, shift and padding."""
    try:
        params = source.config or _architecture(flags.preset)
        return identify(source.tensors, params, prefix=flags.prefix, layout=source.layout)
    except ConversionError as error:
        raise ConversionError(f"{source.path}: {error}", path=source.path) from None


def _open(path: Path, flags: ReadFlags) -> WeightFile:
    source = open_weights(path, raw_weights=flags.raw_weights, variant=flags.variant)
    for note in source.notes:
        print(f"{PROG}: {note}", file=sys.stderr)
    return source


def _print_report(report: dict[str, Any]) -> None:
    lines = [("file", report["path"]), ("kind", report["kind"])]
    if report["problem"] is None:
        lines += [("layout", report["layout"] + (f", under {report['prefix']!r}" if report["prefix"] else ""))]
        if report["left_out"]:
            lines += [("besides", _some(report["left_out"]))]
        unknown = report["unknown"]
        lines += [(name, "?" if name in unknown else value) for name, value in report["architecture"].items()]
        if unknown:
            lines += [("?", "not determined by shapes; to convert, pass --preset or --config")]
        fits = ", ".join(report["presets"])
        near = f"none; the nearest is {report['nearest_preset']}: {'; '.join(report['differences'])}"
        lines += [("presets", fits or near)]
    lines += [("holds", _counted(report)), ("digest", report["digest"])]
    if report["averaged"] is not None:
        lines += [("weights", _AVERAGED[report["averaged"]])]
    lines += [("not finite", _some(report["non_finite"]) if report["non_finite"] else "none")]
    _print_columns(lines)
    if report["problem"] is not None:
        print(report["problem"])


def _counted(counts: dict[str, Any]) -> str:
    return f"{counts['tensors']:,} tensors, {counts['numbers']:,} numbers, {_dtypes(counts['dtypes'])}"


def _dtypes(kinds: dict[str, int]) -> str:
    return ", ".join(name if len(kinds) == 1 else f"{count:,} x {name}" for name, count in kinds.items()) or "empty"


def _some(names: Sequence[str]) -> str:
    return f"{len(names):,} tensors ({shorten(names)})"


def _print_columns(rows: Sequence[Sequence[object]]) -> None:
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
