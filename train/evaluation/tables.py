"""Formats the results of an evaluation as tables and as JSON."""

import dataclasses
import json
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from flax_vae.convert.architecture import Architecture, AutoEncoderParams
from flax_vae.convert.files import atomic_file, finite_json
from flax_vae.images import ImageScores
from flax_vae.train.evaluation.fid import FrechetMeter
from flax_vae.train.evaluation.statistics import ACTIVE, BANDS, PosteriorSummary
from flax_vae.train.evaluation.whole_images import Report

_COLUMNS = {"psnr": ("PSNR", ".2f"), "ssim": ("SSIM", ".4f"), "lpips": ("LPIPS", ".4f")}
_ROWS = 50  # a longer table shows only the worst images


def badness(image: ImageScores, score: str) -> float:
    """Returns a sorting key: the worst images come first, and those without the score last.

    Args:
      image: Scores of the image.
      score: Name of the score.
    """
    value = getattr(image, score)
    if value is None:
        return math.inf
    return -value if score == "lpips" else value


def table(report: Report, worst_by: str) -> list[str]:
    """Returns one line per image, or per image of the worst if there are many, and one line of means.

    Args:
      report: Report of the model.
      worst_by: Name of the score that sorts the images.
    """
    images, head = report.images, []
    if len(images) > _ROWS:
        images = sorted(images, key=lambda image: badness(image, worst_by))[:_ROWS]
        head = [f"the {_ROWS} worst of {len(report.images)} images by {worst_by.upper()}; --json has all"]
    mean = report.mean()
    columns = {name: column for name, column in _COLUMNS.items() if mean[name] is not None}
    rows = [["image", "pixels", *(title for title, _ in columns.values())]]
    for image in images:
        rows.append([image.name, f"{image.height} x {image.width}"])
        rows[-1] += [_number(getattr(image, name), form) for name, (_, form) in columns.items()]
    rows.append(
        [f"mean of {len(report.images)}", "", *(_number(mean[name], form) for name, (_, form) in columns.items())]
    )
    return head + _aligned(rows)


def comparison(reports: Mapping[str, Report]) -> list[str]:
    """Returns one line of mean scores per model.

    Args:
      reports: Report of each model by its name.
    """
    means = {name: report.mean() for name, report in reports.items()}
    columns = [column for column in _COLUMNS if any(mean[column] is not None for mean in means.values())]
    rows = [["model", *(_COLUMNS[column][0] for column in columns)]]
    rows += [
        [name, *(_number(mean[column], _COLUMNS[column][1]) for column in columns)] for name, mean in means.items()
    ]
    return _aligned(rows)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def latent_lines(latents: PosteriorSummary, params: Architecture) -> list[str]:
    """Returns the statistics of the latents: a line per channel, bands of frequencies, KL and the scale to suggest.

    Args:
      latents: Statistics of the posteriors.
      params: Architecture of the model.
    """
    columns = [latents.channel_mean, latents.channel_std, latents.channel_activity]
    means = [latents.mean, latents.std, sum(latents.channel_activity) / len(latents.channel_activity)]
    heads = ["channel", "mean", "std", "variance of means"]
    if latents.channel_kl is not None and latents.kl_per_number is not None:
        columns, means, heads = [*columns, latents.channel_kl], [*means, latents.kl_per_number], [*heads, "KL"]
    rows = [heads, *([str(index), *map(_four, row)] for index, row in enumerate(zip(*columns, strict=True)))]
    lines = _aligned([*rows, ["all", *map(_four, means)]])
    lines += [
        f"active channels: {latents.active_channels} of {len(latents.channel_mean)} ({latents.active_share:.0%}), "
        f"with a variance of means above {ACTIVE}",
        "",
        *_spectrum_lines(latents),
        "",
    ]
    if not isinstance(params, AutoEncoderParams):
        return [
            *lines,
            "KL and scale: none; this model has no posterior, and its latents are those of a diffusion model",
        ]
    lines += [f"KL: {latents.kl_per_image:.1f} nats per image, {latents.kl_per_number:.4f} per latent number"]
    if params.normalises_channels:
        return [*lines, "scale: none to suggest; this model normalises each channel by its own statistics"]
    return [
        *lines,
        f"scale: these latents suggest scale_factor {latents.scale_factor:.6g} and shift_factor "
        f"{latents.shift_factor:.6g}; the model has {params.scale_factor:g} and {params.shift_factor:g}",
    ]


def _four(value: float) -> str:
    return f"{value:.4f}"


def _spectrum_lines(latents: PosteriorSummary) -> list[str]:
    """Returns the shares of the bands of frequencies, beside those of numbers that do not depend on each other."""
    ends = [Fraction(band) for band in BANDS]
    names = [f"to {end}" for end in ends]
    rows = [
        ["frequency", *names],
        ["energy", *(f"{share:.1%}" for share in latents.spectrum)],
        ["white noise", *(f"{share:.1%}" for share in latents.white_noise)],
    ]
    return _aligned(rows)


def rfid_line(report: Report, meter: FrechetMeter | None) -> str:
    """Returns the distance and the number of images and features, or why none was measured.

    Args:
      report: Report of the model.
      meter: Features that were collected; None if there is no extractor.
    """
    count = len(report.images)
    if meter is None:
        return "not measured; name a feature network with --features module:function"
    if report.rfid is None:
        return "not measured; expected at least two images"
    few = "; fewer images than features: compare it for equal images only" if count <= meter.dimension else ""
    return f"{report.rfid:.4f} ({count} images, {meter.dimension} features{few})"


def equivariance_line(report: Report) -> str:
    """Returns the equivariance error, of how many images it is, or why none was measured.

    Args:
      report: Report of the model.
    """
    found = report.equivariance
    if found is None:
        return "not measured; expected --equivariance N of at least 1, and images of at least four latents a side"
    count = len(found.psnr)
    images = "1 image" if count == 1 else f"{count} images"
    return f"{found.mean():.2f} dB ({found.side} x {found.side} pixels in the centre of {images}; more is better)"


def write_report_json(path: Path, about: Mapping[str, Any], report: Report) -> None:
    """Writes all results; values that are not finite, such as the PSNR of equal images, become null.

    Args:
      path: Path of the file, which may exist.
      about: Further fields of the file.
      report: Results.
    """
    fields = {**about, "rfid": report.rfid, "mean": report.mean()}
    if report.equivariance is not None:
        fields["equivariance"] = {"mean": report.equivariance.mean(), **report.equivariance._asdict()}
    fields |= {"latents": dataclasses.asdict(report.latents), "images": [image._asdict() for image in report.images]}
    with atomic_file(path, force=True) as file:
        file.write_text(json.dumps(finite_json(fields), indent=2, allow_nan=False) + "\n", encoding="utf-8")
