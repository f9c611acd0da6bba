"""Several runs on one page: curves over each other, scores, reconstructions side by side, settings that differ."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from flax_vae.convert.files import address_of, exists_at, is_address
from flax_vae.convert.table import expand
from flax_vae.train.config import TrainConfig, flatten_config
from flax_vae.train.errors import RunError
from flax_vae.train.report import curves, page
from flax_vae.train.report.metrics_lines import read_lines
from flax_vae.train.report.pictures import Reconstructed, read_comparisons
from flax_vae.train.run import RunDirectory

_MOST_RUNS = 2 * curves.COLOURS
_MOST_EARLIER = 3  # earlier steps at which reconstructions are shown
_MOST_PHOTOGRAPHS = 16
_SPANS = (("seconds", 1.0), ("minutes", 60.0), ("hours", 3600.0), ("days", 86400.0))
_LONGEST = 200  # in a unit of time, before the next larger one is used
# Column, title, format, and whether more is better.
_SCORES = (
    ("psnr", "PSNR, dB", ".2f", True),
    ("ssim", "SSIM", ".3f", True),
    ("held_out_lpips", "LPIPS", ".4f", False),
    ("rfid", "rFID", ".4f", False),
)


class _Run(NamedTuple):
    place: int
    name: str
    path: str
    config: TrainConfig
    rows: list[dict[str, Any]]
    samples: dict[int, Path]
    photograph: str | None
    finished: bool

    @property
    def step(self) -> int:
        return max((row["step"] for row in self.rows), default=0)


class _Cell(NamedTuple):
    text: str
    small: str = ""
    best: bool = False


class _Scores(NamedTuple):
    titles: list[str]
    rows: list[tuple[_Run, list[_Cell]]]


class _Figure(NamedTuple):
    run: _Run | None
    text: str
    source: str = ""
    alt: str = ""


def write_run_comparison(paths: Sequence[Path], output: Path) -> list[str]:
    """Writes a page that compares runs; they may differ in everything, be in progress, or be a single one.

    Args:
      paths: Run directories, also addresses of those in buckets; at most twelve.  One that is given twice is shown
        once.
      output: Path of the HTML file, which replaces an older one only when it is complete.

    Returns:
      Remarks on what is missing or does not compare; the page has them too.

    Raises:
      RunError: If a directory holds no run, or the file cannot be written.
    """
    notes: list[str] = []
    different = list(dict.fromkeys(path if is_address(path) else path.resolve() for path in paths))
    if len(different) < len(paths):
        notes.append("a run that was given twice is shown once")
    if not different or len(different) > _MOST_RUNS:
        raise RunError(f"{len(different)} runs; pass 1 to {_MOST_RUNS} run directories")
    names = _short_names(different)
    runs = [_read(index, name, path, notes) for index, (name, path) in enumerate(zip(names, different, strict=True))]
    comparable = len({run.photograph for run in runs}) == 1
    if not comparable:
        notes.append("the runs held out different images, so their scores do not compare")
    columns, zeros = page.number_columns([row for run in runs for row in run.rows])
    settings = {run.place: _settings(run.config) for run in runs}
    known = list(dict.fromkeys(name for flat in settings.values() for name in flat))
    table = {name: [flat.get(name, "") for flat in settings.values()] for name in known}
    page.write_page(
        output,
        "compare.html.jinja",
        name=", ".join(names),
        runs=runs,
        notes=notes,
        scores=_scores(runs, comparable),
        axes=_axes(runs, columns),
        zeros=zeros,
        pictures=_pictures(runs, notes),
        different={name: values for name, values in table.items() if len(set(values)) > 1},
        equal={name: values[0] for name, values in table.items() if len(set(values)) == 1},
    )
    return notes


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the last parts of paths, as many as it takes to tell them apart."""
    longest = max(len(path.parts) for path in paths)
    for count in range(1, longest):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(paths):
            return names
    return [str(path) for path in paths]


def _read(index: int, name: str, path: Path, notes: list[str]) -> _Run:
    run = RunDirectory(path)
    config = run.stored_config() if is_address(path) or path.is_dir() else None
    if config is None:
        raise RunError(f"{path} holds no run; expected a run directory with config.json", path=path)
    lines = read_lines(run.metrics)
    damaged = len(lines.damaged) + bool(lines.unfinished)
    if damaged:
        notes.append(f"{name}: {damaged} of {damaged + len(lines.rows)} lines of {run.metrics.name} are damaged")
    if not lines.rows:
        notes.append(f"{name}: no scores yet")
    samples = page.find_samples(run.samples)
    if not samples:
        notes.append(f"{name}: no pictures")
    for change in run.history():
        changed = ", ".join(map(str, change.get("changed", [])))
        notes.append(f"{name}: changed after step {change.get('after_step')}: {changed}")
    listing = run.stored_listing() or {}
    held_out = config.data.held_out
    photograph = None if held_out is None else listing.get(held_out, held_out)
    if config.validation.data is not None:
        photograph = str(replace(config.validation, batch_size=1, raw=False, metric="psnr", patience=None))
    read = _Run(index, name, address_of(path), config, lines.rows, samples, photograph, False)
    return read._replace(finished=exists_at(run.export) and read.step >= config.steps)


def _settings(config: TrainConfig) -> dict[str, str]:
    flat = flatten_config(config.to_dict() | {"model": vars(config.model)})
    return {name: page.setting(value) for name, value in flat.items()}


def _scores(runs: Sequence[_Run], comparable: bool) -> _Scores:
    """Returns the last score of each kind; the best one of each kind is marked if the scores compare."""
    last = {name: [page.last_number(run.rows, name) for run in runs] for name, *_ in _SCORES}
    shown = [row for row in _SCORES if any(value is not None for value in last[row[0]])]
    cells: list[list[_Cell]] = [[_Cell(_progress(run))] for run in runs]
    for column, _, form, more in shown:
        known = [value for value in last[column] if value is not None]
        winner = (max if more else min)(known) if comparable and len(known) > 1 else None
        for run, row, value in zip(runs, cells, last[column], strict=True):
            if value is None:
                row.append(_Cell("–"))
                continue
            row.append(_Cell(format(value, form), _better(run, column, value, form, more), value == winner))
    for run, row in zip(runs, cells, strict=True):
        weights, speed = sum(math.prod(one.shape) for one in expand(run.config.model)), page.median_speed(run.rows)
        times = _times(run)
        row += [_Cell(f"{weights:,}"), _Cell("–" if speed is None else f"{speed:.4g}")]
        row.append(_Cell(_span(times[run.step]) if times else "–"))
    titles = ["steps", *(title for _, title, *_ in shown), "parameters", "images per second", "training time"]
    return _Scores(titles, list(zip(runs, cells, strict=True)))


def _progress(run: _Run) -> str:
    if run.finished:
        return f"{run.step:,}"
    return f"{run.step:,} of {run.config.steps:,}, unfinished"


def _better(run: _Run, column: str, last: float, form: str, more: bool) -> str:
    """Returns the best score of a run and its step, if it is not the last score."""
    sign = 1 if more else -1
    scores = [(sign * row[column], row["step"]) for row in run.rows if page.is_drawable(row.get(column))]
    score, step = max(scores, key=lambda one: one[0])
    best = format(sign * score, form)
    return "" if best == format(last, form) else f"best {best} at step {step:,}"


def _axes(runs: Sequence[_Run], columns: Sequence[str]) -> list[tuple[str, list[tuple[str, str, curves.Chart]]]]:
    """Returns the name of each horizontal axis, and its charts: title, unit, curves of all runs."""
    if not columns:
        return []
    by_image = {run.place: {row["step"]: row["step"] * run.config.batch_size for row in run.rows} for run in runs}
    axes: list[tuple[str, Mapping[int, Mapping[int, float]]]] = [
        ("steps", {run.place: {row["step"]: row["step"] for row in run.rows} for run in runs}),
        ("images", by_image),
    ]
    times = {run.place: _times(run) for run in runs}
    if any(times.values()):
        unit, length = _unit(max(seconds for one in times.values() for seconds in one.values()))
        axes.append(
            (
                f"training time in {unit}",
                {index: {step: seconds / length for step, seconds in one.items()} for index, one in times.items()},
            )
        )
    return [(over, _cards(runs, columns, over, places)) for over, places in axes]


def _cards(
    runs: Sequence[_Run], columns: Sequence[str], over: str, places: Mapping[int, Mapping[int, float]]
) -> list[tuple[str, str, curves.Chart]]:
    """Returns title, unit and chart of each column; those that fewer runs have are the last."""
    cards = []
    for panel, names in page.by_panel(columns):
        for name in names:
            series = [_series(run, name, places[run.place]) for run in runs]
            if any(math.isfinite(curves.drawable(y)) for one in series for _, y in one.points):
                title = page.in_words(name) if len(names) > 1 else panel.title
                drawn = curves.chart(series, may_log=panel.may_log, about=title, over=over)
                cards.append((title[:1].upper() + title[1:], panel.unit, drawn))
    return sorted(cards, key=lambda card: -len(card[2].curves))


def _series(run: _Run, name: str, places: Mapping[int, float]) -> curves.Series:
    shown = [row for row in run.rows if isinstance(row.get(name), int | float) and row["step"] in places]
    return curves.Series(run.name, [(places[row["step"]], float(row[name])) for row in shown])


def _times(run: _Run) -> dict[int, float]:
    """Returns seconds of training by step, from the measured speeds; empty if none was measured.

    Compiling, evaluating and saving are not in it.  A line without a speed has that of the next line.
    """
    times: dict[int, float] = {}
    before, elapsed, rate = 0, 0.0, 0.0
    waiting: list[int] = []

    def add() -> None:
        nonlocal before, elapsed
        for step in waiting:
            elapsed += (step - before) * run.config.batch_size / rate
            times[step], before = elapsed, step
        waiting.clear()

    for row in run.rows:
        waiting.append(row["step"])
        speed = row.get("images_per_second")
        if page.is_drawable(speed) and speed > 0:
            rate = speed
            add()
    if rate:
        add()
    return times


def _unit(seconds: float) -> tuple[str, float]:
    return next((span for span in _SPANS if seconds <= _LONGEST * span[1]), _SPANS[-1])


def _span(seconds: float) -> str:
    unit, length = _unit(seconds)
    return f"{seconds / length:.3g} {unit}"


def _pictures(runs: Sequence[_Run], notes: list[str]) -> list[tuple[str, list[list[_Figure]]]]:
    """Returns reconstructions at the last step of each run, and at earlier steps at which all runs have some."""
    with_samples = [run for run in runs if run.samples]
    if not with_samples:
        return []
    last = {run.place: max(run.samples) for run in with_samples}
    common = set.intersection(*(set(run.samples) for run in with_samples))
    earlier = [step for step in sorted(common) if step >= 0 and any(step != one for one in last.values())]
    choices: list[tuple[str, Mapping[int, int]]] = [("last", last)]
    for step in reversed(page.evenly(earlier, _MOST_EARLIER)):
        choices.append((f"step {step:,}", {place: step for place in last}))
    return [(name, _photographs(runs, steps, notes)) for name, steps in choices]


def _photographs(runs: Sequence[_Run], steps: Mapping[int, int], notes: list[str]) -> list[list[_Figure]]:
    """Returns a row for each photograph: itself, and the reconstruction of each run."""
    rows: dict[str, dict[int, Reconstructed]] = {}
    for run in runs:
        if run.place not in steps:
            continue
        try:
            shown = read_comparisons(run.samples[steps[run.place]])
        except RunError as error:
            notes.append(str(error))
            continue
        for one in shown:  # an image is the same one if its pixels are
            key = one.name + hashlib.sha256(one.original).hexdigest()
            rows.setdefault(key, {})[run.place] = one
    return [_row(runs, steps, row) for row in list(rows.values())[:_MOST_PHOTOGRAPHS]]


def _row(runs: Sequence[_Run], steps: Mapping[int, int], row: Mapping[int, Reconstructed]) -> list[_Figure]:
    first = next(iter(row.values()))
    figures = [_Figure(None, first.name, page.embedded(first.original), first.name)] if first.original else []
    for run in runs:
        if run.place not in row:
            figures.append(_Figure(run, "no picture"))
            continue
        one, step = row[run.place], f"step {steps[run.place]:,}"
        text = " · ".join([step, *one.scores])
        figures.append(_Figure(run, text, page.embedded(one.reconstruction), f"{one.name} by {run.name}, {step}"))
    return figures
