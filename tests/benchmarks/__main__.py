"""Ours against the peers that are installed, on this machine: `python -m tests.benchmarks [--rows NAME...]`."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from tests.benchmarks import attention_memory, machine, table
from tests.benchmarks.rows import CPU_ROWS, EXTRAS, GPU_ROWS, chosen
from tests.benchmarks.turns import ROOT, Outcome, log, measure

Ceilings = dict[str, dict[str, float]]  # GFLOP/s, and GB/s of a copy, by framework and by what is computed

LEGEND = """\
Seconds are medians of calls in turns, each contender in its own process with all cores and, on Linux, huge pages
(GLIBC_TUNABLES=glibc.malloc.hugetlb=1); a peer that took twice the fastest peer's time in the first round had one
turn.  In the shorter rows a turn is an untimed call and then one or three timed ones.  GB is the peak of the
process{resident}.
Compilation is apart, but for `bands`, which compiles its pieces in the one call that is timed.  GFLOP/s count the
plain model's convolutions and attention products; in brackets the share of the faster framework's convolution
ceiling or, in bfloat16, of its ceilings of matrix products and of copies, the latter of the bytes that our compiler
counts.  ratio: the fastest peer's seconds / ours, so above 1 ours is faster."""


@dataclass(frozen=True)
class Flags:
    """Measures this package against the PyTorch peers it finds and prints a table."""

    rows: Annotated[tuple[str, ...], arg(metavar="NAME...", help_behavior_hint="(default: all listed)")] = ()
    """Only the rows whose name matches one of these globs, or contains it."""
    rounds: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 5, fewer for long rows)")] = None
    """Turns of each contender."""
    list: Annotated[bool, arg(name="list", help_behavior_hint="")] = False
    """Print the names of the rows and end."""
    minutes: Annotated[float | None, arg(metavar="N", help_behavior_hint="(default: no limit)")] = None
    """Begin no row after so many minutes."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write everything that was measured to this file, after each row."""
    markdown: Annotated[bool, arg(help_behavior_hint="")] = False
    """Print the table as GitHub Markdown."""


def main() -> int:
    """Measures and prints."""
    flags = tyro.cli(Flags, prog="python -m tests.benchmarks", config=(tyro.conf.FlagCreatePairsOff,))
    device = machine.device()
    started = time.monotonic()
    rows, elsewhere = (CPU_ROWS, GPU_ROWS) if device == "cpu" else (GPU_ROWS, CPU_ROWS)
    if flags.list:
        print("\n".join([row.name + ("" if row.listed else "  (on request)") for row in rows] + list(EXTRAS)))
        return 0
    try:
        rows, extras = chosen(rows, flags.rows, elsewhere)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    ceilings = [find_ceilings()] if "ceilings" in extras else []
    memory = find_memory() if "attention-memory" in extras else {}
    outcomes = []
    late = []
    for row in rows:
        if flags.minutes is not None and time.monotonic() - started > 60 * flags.minutes:
            late.append(row.name)
            continue
        log(row.name)
        outcomes.append(measure(row, flags.rounds or row.rounds))
        if flags.json is not None:
            found = {"machine": machine.describe(device), "ceilings": best(ceilings), "rows": table.as_json(outcomes)}
            flags.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if ceilings and outcomes:  # once more, for the machine may have been disturbed at the beginning
        ceilings.append(find_ceilings())
    print(machine.describe(device), end="\n\n")
    print(*report(outcomes, best(ceilings), memory, device, flags.markdown), sep="\n")
    if late:
        print(f"not begun within {flags.minutes:g} minutes: {', '.join(late)}")
    return 0


def report(
    outcomes: Sequence[Outcome], ceilings: Ceilings, memory: dict[str, dict[int, int]], device: str, markdown: bool
) -> Iterator[str]:
    """The lines that are printed: the table under its legend, then what is to be said beside it."""
    if outcomes:
        yield LEGEND.format(
            resident=": imports, weights and compiler included" if device == "cpu" else " on the device"
        )
        yield ""
        kinds = ("matmul", "conv", "copy") if ceilings else ()
        highest = {kind: max(found[kind] for found in ceilings.values()) for kind in kinds}
        yield from table.render(outcomes, highest, markdown)
        yield ""
    bullet = "* " if markdown else ""
    yield from (bullet + note for outcome in outcomes for note in outcome.notes)
    for framework, found in ceilings.items():
        limits = f"matrix product {found['matmul']:.0f}, convolution {found['conv']:.0f} GFLOP/s"
        yield f"{bullet}ceilings, {framework}: {limits}, copy {found['copy']:.0f} GB/s"
    yield from (bullet + line for line in attention_memory.report(memory))


def best(ceilings: Sequence[Ceilings]) -> Ceilings:
    """The highest of what was measured at different times."""
    frameworks = ceilings[0] if ceilings else {}
    return {name: {what: max(at[name][what] for at in ceilings) for what in frameworks[name]} for name in frameworks}


def find_ceilings() -> Ceilings:
    """GFLOP/s by framework, of those that are installed."""
    log("ceilings")
    frameworks = [name for name in ("jax", "torch") if machine.installed(name)]
    return {name: _ask("machine", name) for name in frameworks}


def find_memory() -> dict[str, dict[int, int]]:
    """Bytes that attention takes, by what is computed and by positions."""
    log("attention-memory")
    return attention_memory.measure(lambda *words: _ask("attention_memory", *words))


def _ask(module: str, *words: str) -> Any:
    """What a file of this folder prints when a fresh process runs it."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
