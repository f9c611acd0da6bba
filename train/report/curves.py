"""Line charts: places of curves, ticks and dots in an SVG, which `chart.svg.jinja` draws.

Matplotlib would add 75 MB to an installation, write curves four times as large, and not follow the page's dark mode;
thinning, smoothing and gaps would still need this code.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 62, WIDTH - 14, 16, HEIGHT - 34  # edges of the plot
_POINTS = 400  # a polyline has no more points than a chart has pixels
_SMOOTH_FROM = 60  # points; shorter curves are drawn as they are
_DOTS_TO = 25  # points; longer curves have no dots
_DRAWN = (1e-290, 1e290)  # magnitudes; the arithmetic of the axes would leave the range of floats outside of these
COLOURS = 6  # curves that can be distinguished in one chart; six more are dashed
_LOG_RANGE = 20.0  # largest over smallest value that a linear axis still shows well

Points = list[tuple[float, float]]


class Series(NamedTuple):
    """One curve.

    Attributes:
      name: Name in the legend.
      points: Pairs of step, or another quantity, and value, in ascending order; a value that is not finite, or far
        beyond float32, leaves a gap.
    """

    name: str
    points: Sequence[tuple[float, float]]


class Curve(NamedTuple):
    """Places of one curve in a chart, in pixels from the top left corner.

    Attributes:
      name: Name in the legend.
      place: Place among all curves of the chart, which chooses the colour.
      last: Last finite value, as text.
      lines: Points of each stretch without a gap; smoothed if the curve is long.
      noisy: Points of each stretch before smoothing; empty if the curve is short.
      dots: Points to mark; empty if there are many.
    """

    name: str
    place: int
    last: str
    lines: list[Points]
    noisy: list[Points]
    dots: Points


class Chart(NamedTuple):
    """Places in a chart of `WIDTH` times `HEIGHT` pixels.

    Attributes:
      label: Description for screen readers.
      x_ticks: Pairs of horizontal place and text.
      y_ticks: Pairs of vertical place and text.
      curves: Curves in the order of the legend.
    """

    label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    curves: list[Curve]


def chart(series: Sequence[Series], *, may_log: bool = False, about: str = "", over: str = "steps") -> Chart:
    """Returns a chart of all curves over their steps.

    Args:
      series: At least one curve; those without a finite value are left out.
      may_log: Whether to use a logarithmic axis if all values are positive and span more than a factor of 20.
      about: Quantity of all curves, if their names do not say it.
      over: Quantity of the horizontal axis, if it is not the steps.

    Raises:
      ValueError: If no curve has a finite value.
    """
    series = [Series(one.name, [(x, drawable(y)) for x, y in one.points]) for one in series]
    finite = [(index, one) for index, one in enumerate(series) if any(math.isfinite(y) for _, y in one.points)]
    series = [one for _, one in finite]
    values = [y for one in series for _, y in one.points if math.isfinite(y)]
    if not values:
        raise ValueError("no curve has a finite value; expected at least one")
    log = may_log and min(values) > 0 and max(values) > _LOG_RANGE * min(values)
    steps = [x for one in series for x, _ in one.points]
    x_ticks = linear_ticks(0, max(steps))
    x_axis = _Axis(x_ticks[0], max(steps), LEFT, RIGHT)
    y_ticks = log_ticks(min(values), max(values)) if log else linear_ticks(min(values), max(values))
    y_axis = _Axis(y_ticks[0], y_ticks[-1], BOTTOM, TOP, log)
    return Chart(
        f"{about}{': ' * bool(about)}{', '.join(one.name for one in series)} over {over}{', logarithmic' * log}",
        [(x_axis(tick), label(tick)) for tick in x_ticks if tick <= max(steps)],
        [(y_axis(tick), label(tick)) for tick in y_ticks],
        [_curve(one, index, x_axis, y_axis) for index, one in finite],
    )


def drawable(value: float) -> float:
    """Returns zero for values too small for an axis, NaN for values too large, and other values unchanged."""
    smallest, largest = _DRAWN
    return math.nan if abs(value) > largest else 0.0 if abs(value) < smallest else value


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns round numbers, 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2, low + (abs(low) or 1.0) / 2
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(power * step for step in (1, 2, 5, 10) if power * step >= rough * (1 - 1e-9))
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [count * gap for count in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns powers of ten from at most `low` to at least `high`; also two and five times each if they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 2 else (1,)
    # One more power at each end, because a rounded logarithm may be too small or too large.
    ticks = [step * 10.0**power for power in range(first - 1, last + 2) for step in steps]
    below, above = max(tick for tick in ticks if tick <= low), min(tick for tick in ticks if tick >= high)
    ticks = [tick for tick in ticks if below <= tick <= above]
    return ticks if len(ticks) <= 8 else [*ticks[:-1:2], ticks[-1]]


def label(value: float) -> str:
    """Returns a short number: 0.001, 12.5, 3k, 1.5M; very small ones as 2e-05."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


class _Axis(NamedTuple):
    """Maps values from `low` to `high` to pixels from `start` to `end`, rounded to a tenth."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, place = map(math.log10, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return round(self.start + (place - low) / (high - low) * (self.end - self.start), 1)


def _curve(series: Series, index: int, x_axis: _Axis, y_axis: _Axis) -> Curve:
    def places(points: Points) -> Points:
        return [(x_axis(x), y_axis(y)) for x, y in points]

    runs = _without_gaps(series.points)
    lines, noisy, dots = runs, [], []
    if (longest := max(map(len, runs))) >= _SMOOTH_FROM:
        lines, noisy = [_smoothed(run) for run in runs], [_thinned(run) for run in runs]
    elif longest <= _DOTS_TO:
        dots = [point for run in runs for point in run]
    last = label(runs[-1][-1][1])
    return Curve(series.name, index, last, [places(run) for run in lines], [places(run) for run in noisy], places(dots))


def _without_gaps(points: Sequence[tuple[float, float]]) -> list[Points]:
    runs: list[Points] = [[]]
    for x, y in points:
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _thinned(points: Points) -> Points:
    """Returns the smallest and the largest value of every stretch, so that no spike is lost."""
    size = -(-len(points) // (_POINTS // 2))
    if size <= 2:
        return points
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept


def _smoothed(points: Points) -> Points:
    """Returns means over a thirtieth of the curve to each side; fewer at the start, which is steep."""
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    reach, count = len(points) // 30, len(points)
    smooth = []
    for index in range(0, count, max(count // _POINTS, 1)):
        first, last = index - min(reach, index), min(index + min(reach, index), count - 1)
        smooth.append((points[index][0], (sums[last + 1] - sums[first]) / (last + 1 - first)))
    return smooth
