"""The table, as text and as Markdown, and the same measurements as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.benchmarks.flops import work_flops
from tests.benchmarks.rows import ALL_PEERS, OURS
from tests.benchmarks.turns import Outcome, Taken

ABSENT = "-"


def header(peers: Sequence[str], half: bool) -> list[str]:
    """Names of the columns."""
    return [
        "work",
        "preset",
        "px",
        "ours s",
        "GB",
        "compile s",
        "GFLOP/s (of product, of copy)" if half else "GFLOP/s (of conv.)",
        *(f"{p} s/GB" for p in peers),
        "ratio",
    ]


def cells(outcome: Outcome, peers: Sequence[str], ceilings: Mapping[str, float]) -> list[str]:
    """One row; the ratio is the fastest peer's time over ours, so above 1 ours is faster."""
    row, ours = outcome.row, outcome.taken.get(OURS)
    size = f"{row.px}" if row.batch == 1 else f"{row.px} x{row.batch}"
    best = outcome.best_peer
    return [
        row.work,
        row.preset,
        size,
        *_ours(outcome, ours, ceilings),
        *(_pair(outcome.taken.get(peer)) for peer in peers),
        f"{best / ours.median:.2f}" if ours and best else ABSENT,
    ]


def _ours(outcome: Outcome, ours: Taken | None, ceilings: Mapping[str, float]) -> list[str]:
    if ours is None:
        return [ABSENT] * 4
    row = outcome.row
    rate = _rate(outcome, ours)
    shares = [rate / ceilings["matmul" if row.half else "conv"]] if ceilings else []
    if ceilings and row.half and ours.traffic:
        shares.append(ours.traffic / ours.median / 1e9 / ceilings["copy"])
    share = f" ({', '.join(f'{share:.0%}' for share in shares)})" if shares else ""
    compiling = ABSENT if ours.compile_s is None else f"{ours.compile_s:.1f}"
    return [_seconds(ours.median), f"{ours.peak / 1e9:.2f}", compiling, f"{rate:.0f}{share}"]


def _rate(outcome: Outcome, taken: Taken) -> float:
    """GFLOP/s of the plain model."""
    row = outcome.row
    return work_flops(row.work, row.record, row.px, row.batch) / taken.median / 1e9


def _pair(taken: Taken | None) -> str:
    return ABSENT if taken is None else f"{_seconds(taken.median)} / {taken.peak / 1e9:.2f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}" if seconds < 100 else f"{seconds:.0f}"


def render(outcomes: Sequence[Outcome], ceilings: Mapping[str, float], markdown: bool) -> list[str]:
    """The lines of the table; peers without a single figure get no column.

    Args:
      outcomes: what the rows took.
      ceilings: what the machine reaches at most, by what is computed; may be empty.
      markdown: whether the table is GitHub's.
    """
    peers = [peer for peer in ALL_PEERS if any(peer in outcome.taken for outcome in outcomes)]
    half = any(outcome.row.half for outcome in outcomes)
    rows = [header(peers, half), *(cells(outcome, peers, ceilings) for outcome in outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [
        [
            cell.ljust(w) if column < 2 else cell.rjust(w)
            for column, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    if not markdown:
        return ["  ".join(row).rstrip() for row in padded]
    rule = ["-" * w if column < 2 else "-" * (w - 1) + ":" for column, w in enumerate(widths)]
    return [f"| {' | '.join(row)} |" for row in (padded[0], rule, *padded[1:])]


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The rows with everything that was measured, seconds of each call included."""
    return [
        {
            "name": outcome.row.name,
            "work": outcome.row.work,
            "preset": outcome.row.preset,
            "px": outcome.row.px,
            "batch": outcome.row.batch,
            "contenders": {
                name: vars(taken) | {"median": taken.median, "gflops": _rate(outcome, taken)}
                for name, taken in outcome.taken.items()
                if taken.seconds
            },
            "notes": outcome.notes,
        }
        for outcome in outcomes
    ]
