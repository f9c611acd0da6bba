"""Line charts as inline SVG: axes, ticks, legend, nothing that a browser would have to fetch or run."""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 16, 34  # pixels of the margins around the plot
_POINTS = 400  # a polyline has no more points than a chart has pixels
_SMOOTH_FROM = 60  # points; shorter curves are drawn as they are
_DRAWN = (1e-290, 1e290)  # magnitudes; the arithmetic of the axes would leave the range of floats outside of these
_LOG_RANGE = 20.0  # largest over smallest value that a linear axis still shows well


class Series(NamedTuple):
    """One curve.

    Attributes:
      name: for the legend.
      points: of (step, value), by step; a value that is not finite, or far beyond float32, leaves a gap.
    """

    name: str
    points: Sequence[tuple[float, float]]


def chart(series: Sequence[Series], *, may_log: bool = False) -> str:
    """Returns an `<svg>` of all curves over their steps; colours are the classes `s0`, `s1`, ... of the page.

    Args:
      series: at least one; those without a finite value are left out.
      may_log: use a logarithmic axis where all values are positive and span more than a factor of 20.

    Raises:
      ValueError: if no curve has a finite value.
    """
    series = [Series(one.name, [(x, drawable(y)) for x, y in one.points]) for one in series]
    series = [one for one in series if any(math.isfinite(y) for _, y in one.points)]
    values = [y for one in series for _, y in one.points if math.isfinite(y)]
    if not values:
        raise ValueError("there is nothing to draw: no curve has a finite value")
    log = may_log and min(values) > 0 and max(values) > _LOG_RANGE * min(values)
    steps = [x for one in series for x, _ in one.points]
    x_ticks = linear_ticks(0, max(steps))
    x_axis = _Axis([tick for tick in x_ticks if tick <= max(steps)], x_ticks[0], max(steps), _LEFT, WIDTH - _RIGHT)
    y_ticks = log_ticks(min(values), max(values)) if log else linear_ticks(min(values), max(values))
    y_axis = _Axis(y_ticks, y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP, log)
    parts = [_grid(x_axis, y_axis)]
    parts += [_curve(one.points, f"s{index}", x_axis, y_axis) for index, one in enumerate(series)]
    what = html.escape(f"{', '.join(one.name for one in series)} over steps{', logarithmic' if log else ''}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{what}">{"".join(parts)}</svg>'
    return svg + _legend(series)


def drawable(value: float) -> float:
    """Returns zero for what is too small for an axis, NaN for what is too large, and any other value as it is."""
    smallest, largest = _DRAWN
    return math.nan if abs(value) > largest else 0.0 if abs(value) < smallest else value


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2, low + (abs(low) or 1.0) / 2
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(power * step for step in (1, 2, 5, 10) if power * step >= rough * (1 - 1e-9))
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [count * gap for count in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and twice and five times those where there are few, from at most `low` to at least `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 2 else (1,)
    # One power more at each end: a logarithm is rounded, to below what it is of as well.
    ticks = [step * 10.0**power for power in range(first - 1, last + 2) for step in steps]
    below, above = max(tick for tick in ticks if tick <= low), min(tick for tick in ticks if tick >= high)
    ticks = [tick for tick in ticks if below <= tick <= above]
    return ticks if len(ticks) <= 8 else [*ticks[:-1:2], ticks[-1]]


def label(value: float) -> str:
    """A short number: 0.001, 12.5, 3k, 1.5M; very small ones as 2e-05."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


class _Axis(NamedTuple):
    """From values, `low` to `high`, to pixels, `start` to `end`."""

    ticks: list[float]
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, place = map(math.log10, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (place - low) / (high - low) * (self.end - self.start)


def _grid(x_axis: _Axis, y_axis: _Axis) -> str:
    parts = []
    for tick in y_axis.ticks:
        y = y_axis(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 8}" y="{y + 4:.1f}">{label(tick)}</text>')
    bottom = HEIGHT - _BOTTOM
    for tick in x_axis.ticks:
        x = x_axis(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 18}">{label(tick)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    return "".join(parts)


def _curve(points: Sequence[tuple[float, float]], colour: str, x_axis: _Axis, y_axis: _Axis) -> str:
    runs = _without_gaps(points)
    longest = max(map(len, runs))
    if longest < _SMOOTH_FROM:
        drawn = "".join(_polyline(run, colour, x_axis, y_axis) for run in runs)
        if longest > 25:
            return drawn
        dots = (
            f'<circle class="dot {colour}" cx="{x_axis(x):.1f}" cy="{y_axis(y):.1f}" r="2.6"/>'
            for r in runs
            for x, y in r
        )
        return drawn + "".join(dots)
    noisy = (_polyline(_thinned(run), f"noisy {colour}", x_axis, y_axis) for run in runs)
    smooth = (_polyline(_smoothed(run), colour, x_axis, y_axis) for run in runs)
    return "".join([*noisy, *smooth])


def _without_gaps(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The least and the largest value of every stretch, so that no spike is lost."""
    size = -(-len(points) // (_POINTS // 2))
    if size <= 2:
        return points
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean of a neighbourhood, a thirtieth of the curve to each side; narrower at the start, which is steep."""
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    reach, count = len(points) // 30, len(points)
    smooth = []
    for index in range(0, count, max(count // _POINTS, 1)):
        first, last = index - min(reach, index), min(index + min(reach, index), count - 1)
        smooth.append((points[index][0], (sums[last + 1] - sums[first]) / (last + 1 - first)))
    return smooth


def _polyline(points: list[tuple[float, float]], classes: str, x_axis: _Axis, y_axis: _Axis) -> str:
    places = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in points)
    return f'<polyline class="curve {classes}" points="{places}"/>'


def _legend(series: Sequence[Series]) -> str:
    entries = []
    for index, one in enumerate(series):
        last = next(y for _, y in reversed(one.points) if math.isfinite(y))
        name = html.escape(one.name)
        entries.append(f'<li><i class="s{index}"></i>{name}<b>{label(last)}</b></li>')
    return f'<ul class="legend">{"".join(entries)}</ul>'
