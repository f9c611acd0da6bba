"""`report.html`: a run on one page that opens anywhere, without a network, a server or a script."""

import base64
import functools
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from flax_vae.convert.files import atomic_file
from flax_vae.convert.table import expand
from flax_vae.train.config import TrainConfig
from flax_vae.train.errors import RunError
from flax_vae.train.report import curves
from flax_vae.train.report.metrics_log import read_metrics
from flax_vae.train.run import RunDirectory

REPORT = "report.html"
_MOST_SAMPLES = 8


class _Panel(NamedTuple):
    title: str
    unit: str
    columns: re.Pattern[str]
    may_log: bool = False


# A column belongs to the first panel that matches; a column without a match gets its own chart.
_PANELS = (
    _Panel("PSNR", "dB, held out", re.compile(r"psnr")),
    _Panel("SSIM", "held out", re.compile(r"ssim")),
    _Panel("Gradient", "global norm before the clip", re.compile(r"grad.*norm|norm.*grad"), may_log=True),
    _Panel("Discriminator", "", re.compile(r"^(disc|d_|g_|gan|adv|generator|hinge|adaptive)|logits")),
    _Panel("LPIPS", "", re.compile(r"lpips|perceptual"), may_log=True),
    _Panel("KL", "nats per image", re.compile(r"(^|[_/])kl($|_)"), may_log=True),
    _Panel("Loss", "", re.compile(r"(^|[_/])(loss|l1|mse|charbonnier|nll|rec)($|[_/])"), may_log=True),
    _Panel("Learning rate", "", re.compile(r"learning_rate|(^|_)lr($|_)")),
    _Panel("Speed", "images per second", re.compile(r"images_per_second")),
    _Panel("Arithmetic", "TFLOP/s, all devices", re.compile(r"tflops_per_second")),
    _Panel("MFU", "share of the peak in bfloat16 without sparsity", re.compile(r"^mfu$")),
)
_COLOURS = 6  # curves that can be distinguished in one chart
# Order of the charts, the most important first.
_ORDER = ("Loss", "PSNR", "SSIM", "LPIPS", "KL", "Discriminator", "Gradient", "Learning rate", "Speed")
_TILES = (("psnr", "PSNR", "dB", ".2f"), ("ssim", "SSIM", "", ".3f"), ("held_out_lpips", "LPIPS", "", ".4f"))


def write_report(path: Path) -> Path:
    """Writes `report.html` into a run directory: curves, samples, scores and all settings.

    Args:
      path: Run directory; the run may still be in progress.

    Returns:
      Path of the file, which replaces an older one only when it is complete.

    Raises:
      RunError: If the directory holds no run, or the file cannot be written.
    """
    run = RunDirectory(path)
    config = run.stored_config() if path.is_dir() else None
    if config is None:
        raise RunError(f"{path} holds no run; expected a run directory with config.json")
    rows = read_metrics(run.metrics)
    samples = sorted(run.samples.glob("*.png"), key=_step_of) if run.samples.is_dir() else []
    page = _page(path.resolve().name, config, rows, samples)
    try:
        with atomic_file(path / REPORT, force=True) as file:
            file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{path / REPORT} cannot be written ({error}); correct that, then run the report again"
        ) from error
    return path / REPORT


def _page(name: str, config: TrainConfig, rows: list[dict[str, Any]], samples: list[Path]) -> str:
    return (
        _templates()
        .get_template("report.html.jinja")
        .render(
            name=name,
            config=config,
            step=max((row["step"] for row in rows), default=0),
            tiles=_tiles(config, rows),
            cards=_cards(rows),
            samples=_samples(samples, rows),
            settings=_settings(config.to_dict()),
            plot=curves,
        )
    )


@functools.cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("flax_vae.train.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _tiles(config: TrainConfig, rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    tiles = []
    for column, title, unit, form in _TILES:
        known = [row[column] for row in rows if _is_number(row.get(column))]
        if known:
            tiles.append((title, format(known[-1], form), unit))
    losses = [row["loss"] for row in rows if _is_number(row.get("loss"))]
    tiles += [("Loss", f"{losses[-1]:.4g}", "")] if losses else []
    weights = sum(math.prod(row.shape) for row in expand(config.model))
    tiles += [("Parameters", *((f"{weights / 1e6:.1f}", "M") if weights >= 1e5 else (f"{weights:,}", "")))]
    speeds = sorted(row["images_per_second"] for row in rows if _is_number(row.get("images_per_second")))
    tiles += [("Speed, median", f"{speeds[len(speeds) // 2]:.4g}", "images/s")] if speeds else []
    return tiles


def _cards(rows: list[dict[str, Any]]) -> list[tuple[str, str, curves.Chart]]:
    """Returns title, unit and chart of each group of columns."""
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value) and name != "step")
    groups: dict[str, list[str]] = {title: [] for title in _ORDER}
    panels = {panel.title: panel for panel in _PANELS}
    for name in columns:
        title = next((panel.title for panel in _PANELS if panel.columns.search(name)), name)
        groups.setdefault(title, []).append(name)
    cards = []
    for title, names in groups.items():
        panel = panels.get(title, _Panel(title, "", re.compile("")))
        for first in range(0, len(names), _COLOURS):
            series = [_series(name, rows) for name in names[first : first + _COLOURS]]
            cards.append((title, panel.unit, curves.chart(series, may_log=panel.may_log)))
    return cards


def _series(name: str, rows: list[dict[str, Any]]) -> curves.Series:
    points = [(row["step"], float(row[name])) for row in rows if isinstance(row.get(name), int | float)]
    return curves.Series(name, points)


def _samples(samples: list[Path], rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Returns name, score and content of the pictures, of which the page shows one at a time."""
    if len(samples) > _MOST_SAMPLES:
        last = len(samples) - 1
        samples = [samples[round(index * last / (_MOST_SAMPLES - 1))] for index in range(_MOST_SAMPLES)]
    psnr = {row["step"]: row["psnr"] for row in rows if _is_number(row.get("psnr"))}
    found = []
    for sample in samples:
        step = _step_of(sample)
        score = f" · PSNR {psnr[step]:.2f} dB" if step in psnr else ""
        name = f"step {step:,}" if step >= 0 else sample.stem
        found.append((name, score, base64.b64encode(sample.read_bytes()).decode()))
    return found


def _step_of(sample: Path) -> int:
    found = re.search(r"(\d+)$", sample.stem)
    return int(found[1]) if found else -1


def _settings(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns the settings of the run, and those of each nested config, as text."""
    parts = {name: value for name, value in config.items() if isinstance(value, Mapping)}
    run = {name: value for name, value in config.items() if name not in parts}
    return {
        title: {name: _shown(value) for name, value in fields.items()}
        for title, fields in {"run": run, **parts}.items()
    }


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(curves.drawable(value))
