"""The table, as text and as Markdown."""

from collections.abc import Sequence

from tests.benchmarks.flops import work_flops
from tests.benchmarks.rows import OURS, PEERS
from tests.benchmarks.turns import Outcome, Taken

ABSENT = "-"


def header(peers: Sequence[str]) -> list[str]:
    """Names of the columns."""
    return [
        "work",
        "preset",
        "px",
        "ours s",
        "GB",
        "compile s",
        "GFLOP/s (of conv.)",
        *(f"{p} s/GB" for p in peers),
        "ratio",
    ]


def cells(outcome: Outcome, peers: Sequence[str], ceiling: float | None) -> list[str]:
    """One row; the ratio is the fastest peer's time over ours, so above 1 ours is faster."""
    row, ours = outcome.row, outcome.taken.get(OURS)
    size = f"{row.px}" if row.batch == 1 else f"{row.px} x{row.batch}"
    best = outcome.best_peer
    return [
        row.work,
        row.preset,
        size,
        *_ours(outcome, ours, ceiling),
        *(_pair(outcome.taken.get(peer)) for peer in peers),
        f"{best / ours.median:.2f}" if ours and best else ABSENT,
    ]


def _ours(outcome: Outcome, ours: Taken | None, ceiling: float | None) -> list[str]:
    if ours is None:
        return [ABSENT] * 4
    row = outcome.row
    rate = work_flops(row.work, row.record, row.px, row.batch) / ours.median / 1e9
    share = f" ({rate / ceiling:.0%})" if ceiling else ""
    compiling = ABSENT if ours.compile_s is None else f"{ours.compile_s:.1f}"
    return [_seconds(ours.median), f"{ours.peak / 1e9:.2f}", compiling, f"{rate:.0f}{share}"]


def _pair(taken: Taken | None) -> str:
    return ABSENT if taken is None else f"{_seconds(taken.median)} / {taken.peak / 1e9:.2f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}" if seconds < 100 else f"{seconds:.0f}"


def render(outcomes: Sequence[Outcome], ceiling: float | None, markdown: bool) -> list[str]:
    """The lines of the table; peers without a single figure get no column."""
    peers = [peer for peer in PEERS if any(peer in outcome.taken for outcome in outcomes)]
    rows = [header(peers), *(cells(outcome, peers, ceiling) for outcome in outcomes)]
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
