"""Shared parts of the HTML pages: templates, groups and names of the columns of `metrics.jsonl`, embedded pictures."""

import base64
import functools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from jinja2 import Environment, PackageLoader, StrictUndefined

from flax_vae.convert.files import list_at, write_at
from flax_vae.train.errors import RunError
from flax_vae.train.report import curves


class Panel(NamedTuple):
    """A group of columns that are drawn alike.

    Attributes:
      title: Title of its chart.
      unit: Unit of all columns, or a remark about them.
      columns: Pattern of their names.
      may_log: Whether the axis may be logarithmic.
    """

    title: str
    unit: str
    columns: re.Pattern[str]
    may_log: bool = False


# A column belongs to the first panel that matches; a column without a match gets its own chart.
_PANELS = (
    Panel("PSNR", "dB, held out", re.compile(r"psnr")),
    Panel("SSIM", "held out", re.compile(r"(^|_)ssim$")),
    Panel("Gradient", "global norm before the clip", re.compile(r"grad.*norm|norm.*grad"), may_log=True),
    Panel("Discriminator", "", re.compile(r"^(disc|d_|g_|gan|adv|generator|hinge|adaptive)|logits")),
    Panel("rFID", "", re.compile(r"rfid"), may_log=True),
    Panel("LPIPS", "", re.compile(r"lpips|perceptual"), may_log=True),
    Panel("KL", "nats per image", re.compile(r"(^|[_/])kl($|_)"), may_log=True),
    Panel("Loss", "", re.compile(r"(^|[_/])(loss|l1|mse|charbonnier|nll|rec)($|[_/])"), may_log=True),
    Panel("Latents over their change", "dB, against the starting model", re.compile(r"^latent_decibels$")),
    Panel("Learning rate", "", re.compile(r"learning_rate|(^|_)lr($|_)")),
    Panel("Speed", "images per second", re.compile(r"images_per_second")),
    Panel("Arithmetic", "TFLOP/s, all devices", re.compile(r"tflops_per_second")),
    Panel("MFU", "share of the peak in bfloat16 without sparsity", re.compile(r"^mfu$")),
)
# Order of the charts, the most important first.
_ORDER = ("Loss", "PSNR", "SSIM", "LPIPS", "rFID", "KL", "Discriminator", "Gradient", "Learning rate", "Speed")

_WORDS = {
    "l1": "L1 distance",
    "mse": "mean squared error",
    "charbonnier": "Charbonnier distance",
    "kl": "KL divergence",
    "lpips": "LPIPS of training crops",
    "held_out_lpips": "held-out LPIPS",
    "logvar": "learned log variance",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ssim_loss": "1 - SSIM of training crops",
    "rfid": "rFID",
    "raw_psnr": "PSNR of the raw weights",
    "raw_ssim": "SSIM of the raw weights",
    "raw_lpips": "held-out LPIPS of the raw weights",
    "raw_rfid": "rFID of the raw weights",
    "d_loss": "loss of the discriminator",
    "g_loss": "adversarial loss",
    "d_weight": "weight of the adversarial loss",
    "logits_real": "logits of images",
    "logits_fake": "logits of reconstructions",
    "r1": "R1 penalty",
    "grad_norm": "gradient norm",
    "d_grad_norm": "gradient norm of the discriminator",
    "latent_cosine": "cosine of the latents and those of the start",
    "latent_decibels": "latents of the start over their change",
    "in_a_row": "skipped updates in a row",
    "skipped": "skipped updates",
    "tflops_per_second": "TFLOP/s",
    "mfu": "MFU",
}


def in_words(column: str) -> str:
    """Returns the name of a column for a reader."""
    return _WORDS.get(column, column.replace("_", " "))


def number_columns(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Returns the columns that hold finite numbers: those to draw, and those in which all numbers are zero."""
    drawn: dict[str, bool] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and is_drawable(value):
                drawn[name] = drawn.get(name, False) or curves.drawable(value) != 0
    return [name for name, shown in drawn.items() if shown], [name for name, shown in drawn.items() if not shown]


def by_panel(columns: Sequence[str]) -> list[tuple[Panel, list[str]]]:
    """Returns panels with their columns, the most important first; panels without a column are left out."""
    panels = {panel.title: panel for panel in _PANELS}
    groups: dict[str, list[str]] = {title: [] for title in _ORDER}
    for name in columns:
        title = next((panel.title for panel in _PANELS if panel.columns.search(name)), in_words(name))
        groups.setdefault(title, []).append(name)
    own = re.compile("")
    return [(panels.get(title, Panel(title, "", own)), names) for title, names in groups.items() if names]


def is_drawable(value: Any) -> TypeGuard[float]:
    """Returns whether a value is a finite number that a chart can show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(curves.drawable(value))


def last_number(rows: Sequence[dict[str, Any]], column: str) -> float | None:
    """Returns the last finite number of a column, or None if it has none."""
    return next((row[column] for row in reversed(rows) if is_drawable(row.get(column))), None)


def median_speed(rows: Sequence[dict[str, Any]]) -> float | None:
    """Returns the median of the images per second, or None if it was not measured."""
    speeds = sorted(row["images_per_second"] for row in rows if is_drawable(row.get("images_per_second")))
    return speeds[len(speeds) // 2] if speeds else None


def find_samples(folder: Path) -> dict[int, Path]:
    """Returns the pictures of a run by their steps, in ascending order; -1 is the step of a name without a number."""
    names = [entry.name for entry in list_at(folder) if entry.name.endswith(".png")]
    found = {_step_of(folder / name): folder / name for name in names}
    return dict(sorted(found.items()))


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """Returns at most `most` items at equal distances, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def embedded(png: bytes) -> str:
    """Returns a picture as the source of an image element."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def setting(value: Any) -> str:
    """Returns the value of a setting as text."""
    return value if isinstance(value, str) else json.dumps(value)


@functools.cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("flax_vae.train.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["in_words"] = in_words
    return templates


def write_page(path: Path, template: str, **names: Any) -> None:
    """Writes a page, which replaces an older one only when it is complete.

    Args:
      path: Path of the file.
      template: Name of the template in this room.
      **names: Values of the template's names.

    Raises:
      RunError: If the file cannot be written.
    """
    page = _templates().get_template(template).render(plot=curves, **names)
    try:
        write_at(path, page.encode())
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error}); correct that, then write it again", path=path) from error


def _step_of(sample: Path) -> int:
    found = re.search(r"(\d+)$", sample.stem)
    return int(found[1]) if found else -1
