"""`report.html`: a run on one page that opens anywhere, without a network, a server or a script."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax_vae.convert.files import as_path, is_address
from flax_vae.convert.table import expand
from flax_vae.train.config import TrainConfig
from flax_vae.train.errors import RunError
from flax_vae.train.report import curves, page
from flax_vae.train.report.metrics_log import read_metrics
from flax_vae.train.report.pictures import AMPLIFIED, Reconstructed, read_comparisons
from flax_vae.train.run import RunDirectory

REPORT = "report.html"
_MOST_SAMPLES = 8
_TILES = (
    ("psnr", "PSNR", "dB", ".2f"),
    ("ssim", "SSIM", "", ".3f"),
    ("held_out_lpips", "LPIPS", "", ".4f"),
    ("rfid", "rFID", "", ".4f"),
)


class _Photograph(NamedTuple):
    title: str
    figures: list[tuple[str, str]]  # caption and source of each image


class _Sample(NamedTuple):
    name: str
    score: str
    photographs: list[_Photograph]
    trouble: str = ""


def write_report(path: Path) -> Path:
    """Writes `report.html` into a run directory: curves, samples, scores and all settings.

    Args:
      path: Run directory; the run may still be in progress.

    Returns:
      Path of the file, which replaces an older one only when it is complete.

    Raises:
      RunError: If the directory holds no run, or the file cannot be written.
    """
    path = as_path(path)
    run = RunDirectory(path)
    config = run.stored_config() if is_address(path) or path.is_dir() else None
    if config is None:
        raise RunError(f"{path} holds no run; expected a run directory with config.json")
    rows = read_metrics(run.metrics)
    columns, zeros = page.number_columns(rows)
    page.write_page(
        path / REPORT,
        "report.html.jinja",
        name=path.name if is_address(path) else path.resolve().name,
        config=config,
        step=max((row["step"] for row in rows), default=0),
        tiles=_tiles(config, rows),
        cards=_cards(rows, columns),
        zeros=zeros,
        samples=_samples(page.find_samples(run.samples), rows),
        settings=_settings(config.to_dict()),
    )
    return path / REPORT


def _tiles(config: TrainConfig, rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    tiles = []
    for column, title, unit, form in _TILES:
        last = page.last_number(rows, column)
        if last is not None:
            tiles.append((title, format(last, form), unit))
    loss = page.last_number(rows, "loss")
    tiles += [("Loss", f"{loss:.4g}", "")] if loss is not None else []
    weights = sum(math.prod(row.shape) for row in expand(config.model))
    tiles += [("Parameters", *((f"{weights / 1e6:.1f}", "M") if weights >= 1e5 else (f"{weights:,}", "")))]
    speed = page.median_speed(rows)
    tiles += [("Speed, median", f"{speed:.4g}", "images/s")] if speed is not None else []
    return tiles


def _cards(rows: list[dict[str, Any]], columns: list[str]) -> list[tuple[str, str, curves.Chart]]:
    """Returns title, unit and chart of each group of columns."""
    cards = []
    for panel, names in page.by_panel(columns):
        for first in range(0, len(names), curves.COLOURS):
            series = [_series(name, rows) for name in names[first : first + curves.COLOURS]]
            cards.append((panel.title, panel.unit, curves.chart(series, may_log=panel.may_log)))
    return cards


def _series(name: str, rows: list[dict[str, Any]]) -> curves.Series:
    points = [(row["step"], float(row[name])) for row in rows if isinstance(row.get(name), int | float)]
    return curves.Series(page.in_words(name), points)


def _samples(samples: dict[int, Path], rows: list[dict[str, Any]]) -> list[_Sample]:
    """Returns the pictures of some steps, of which the page shows one at a time."""
    psnr = {row["step"]: row["psnr"] for row in rows if page.is_drawable(row.get("psnr"))}
    found = []
    for step in page.evenly(list(samples), _MOST_SAMPLES):
        score = f" · PSNR {psnr[step]:.2f} dB" if step in psnr else ""
        name = f"step {step:,}" if step >= 0 else samples[step].stem
        try:
            found.append(_Sample(name, score, [_photograph(one) for one in read_comparisons(samples[step])]))
        except RunError as error:  # does not keep the page from its curves
            found.append(_Sample(name, score, [], str(error)))
    return found


def _photograph(one: Reconstructed) -> _Photograph:
    parts = {
        "original": one.original,
        "reconstruction": one.reconstruction,
        f"difference, {AMPLIFIED} times as bright": one.difference,
    }
    if not one.original:  # a picture of an earlier version is shown whole
        parts = {"samples": one.reconstruction}
    figures = [(caption, page.embedded(png)) for caption, png in parts.items() if png]
    return _Photograph(" · ".join([*filter(None, [one.name]), *one.scores]), figures)


def _settings(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns the settings of the run, and those of each nested config, as text."""
    parts = {name: value for name, value in config.items() if isinstance(value, Mapping)}
    run = {name: value for name, value in config.items() if name not in parts}
    return {
        title: {name: page.setting(value) for name, value in fields.items()}
        for title, fields in {"run": run, **parts}.items()
    }
