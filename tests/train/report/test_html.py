"""Tests of the report: it shows everything of the run, and no name or value breaks the page."""

import base64
import html
import itertools
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from flax_vae.convert.table.rows import expand
from flax_vae.train.errors import RunError
from flax_vae.train.report.curves import HEIGHT, WIDTH, Series, chart, label, linear_ticks, log_ticks
from flax_vae.train.report.html import write_report
from flax_vae.train.run.directory import RunDirectory

VOID = {"meta", "input", "img", "line", "circle", "polyline"}


class Page(HTMLParser):
    """Collects elements and texts; fails if tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())

    def of(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture
def run(tmp_path, small):
    """Returns a run with 8 of 10 steps done."""
    run = RunDirectory(tmp_path / "a run")
    run.begin(small)
    rows = [
        {
            "step": step,
            "loss": 1 / step,
            "l1": 0.5 / step,
            "lpips": 0.9,
            "ssim_loss": 0.3,
            "skipped": 0.0,
            "images_per_second": 10.0 + step,
        }
        for step in range(1, 9)
    ]
    rows[3] |= {"psnr": 20.5, "ssim": 0.5, "held_out_lpips": 0.25}
    rows[7] |= {
        "psnr": 21.25,
        "ssim": 0.75,
        "held_out_lpips": 0.125,
        "<odd & new>": 3.0,
        "note": "no number",
        "loss": math.nan,
    }
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "lo')
    for step in (4, 8):
        Image.fromarray(np.full((6, 8, 3), step, np.uint8)).save(run.samples / f"step_{step:07}.png")
    return run


def test_page_is_complete_and_loads_no_other_file(run):
    path = write_report(run.path)
    assert path == run.path / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.of("img"))
    assert not [name for name, attrs in page.elements for attr in attrs if attr.startswith("on")]
    assert sorted(entry.name for entry in run.path.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "report.html",
        "samples",
    ]


def test_page_shows_progress_scores_and_settings(run, small):
    page = Page(write_report(run.path).read_text(encoding="utf-8"))
    text = " ".join(page.texts)
    assert page.texts.count("a run") == 2  # title and heading
    assert "step 8 of 10" in text
    scores = dict(reversed(list(itertools.pairwise(page.texts))))  # the first value of each name
    assert scores["PSNR"] == "21.25"
    assert scores["LPIPS"] == "0.1250"
    assert scores["Loss"] == f"{1 / 7:.4g}"  # the last finite value
    assert scores["Speed, median"] == "15"
    assert scores["Parameters"] == f"{sum(math.prod(row.shape) for row in expand(small.model)) / 1e6:.1f}"
    for name, value in small.to_dict()["optim"].items():
        assert scores[name] == (value if isinstance(value, str) else json.dumps(value))


def test_all_numeric_columns_are_drawn_and_names_escaped(run):
    text = write_report(run.path).read_text(encoding="utf-8")
    labels = [attrs["aria-label"] for attrs in Page(text).of("svg")]
    names = [name for shown in labels for name in shown.split(" over steps")[0].split(", ")]
    assert sorted(names) == sorted(
        [
            *("loss", "L1 distance", "images per second", "PSNR", "SSIM", "LPIPS of training crops", "held-out LPIPS"),
            *("1 - SSIM of training crops", "<odd & new>"),
        ]
    )
    assert labels[0].startswith("loss, L1 distance, 1 - SSIM of training crops")
    assert "Always zero: skipped updates." in Page(text).texts
    assert "<odd" not in text


def test_curves_are_drawn_at_their_points(run):
    page = Page(write_report(run.path).read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()[:-1]]
    loss, l1 = chart([Series(name, [(row["step"], row[name]) for row in rows]) for name in ("loss", "l1")]).curves
    drawn = [[tuple(map(float, p.split(","))) for p in line["points"].split()] for line in page.of("polyline")[:2]]
    assert drawn == [*loss.lines, *l1.lines]
    dots = [(float(dot["cx"]), float(dot["cy"])) for dot in page.of("circle")]
    assert dots[: len(loss.dots + l1.dots)] == loss.dots + l1.dots


def test_extreme_values_are_drawn_or_left_out(run):
    values = [5e-324, 1e-300, 0.0, 1.0, 1e16, 1e16 + 2, 1.7e308, -1.7e308]
    for first, second in itertools.product(values, repeat=2):
        rows = [{"step": 1, "loss": first, "kl": 1.0}, {"step": 2, "loss": second}, {"step": 2**53 - 1, "loss": 1.0}]
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = write_report(run.path).read_text(encoding="utf-8")
        assert not re.search(r"(points|cx|cy|x1|y1)=\"[^\"]*(nan|inf)", text)
    run.metrics.write_text(json.dumps({"step": 1, "loss": 1.7e308}))
    assert "step 1 of 10" in write_report(run.path).read_text(encoding="utf-8")


def test_samples_are_embedded_and_the_last_is_shown(run):
    page = Page(write_report(run.path).read_text(encoding="utf-8"))
    embedded = [base64.b64decode(image["src"].split(",")[1]) for image in page.of("img")]
    assert embedded == [path.read_bytes() for path in sorted(run.samples.iterdir())]
    assert ["checked" in choice for choice in page.of("input")] == [False, True]
    assert any("PSNR 21.25 dB" in text and "step 8" in text for text in page.texts)


def test_many_samples_are_thinned_out(run):
    for step in range(100, 121):
        Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(run.samples / f"step_{step:07}.png")
    images = Page(write_report(run.path).read_text(encoding="utf-8")).of("img")
    assert [image["alt"] for image in images][::7] == ["samples, step 4", "samples, step 120"]
    assert len(images) == 8


def test_a_run_without_metrics_has_a_report(tmp_path, small):
    RunDirectory(tmp_path / "new").begin(small)
    page = Page(write_report(tmp_path / "new").read_text(encoding="utf-8"))
    assert page.of("svg") == page.of("img") == []
    assert any("step 0 of 10" in text for text in page.texts)


def test_a_name_is_escaped(tmp_path, small):
    name = "<b>&amp;"
    RunDirectory(tmp_path / name).begin(small)
    text = write_report(tmp_path / name).read_text(encoding="utf-8")
    assert name in Page(text).texts
    assert html.escape(name) in text
    assert "<b>&amp;" not in text.replace("&lt;b&gt;", "")


def test_a_directory_without_a_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match="holds no run"):
            write_report(path)


# -------------------------------------------------------------------------------------------------------------- curves


def test_points_agree_with_the_ticks():
    drawn = chart([Series("x", [(0, 0.0), (50, 2.5), (100, 10.0)])])
    ((first, middle, last),) = drawn.curves[0].lines
    ticks = {text: y for y, text in drawn.y_ticks}
    steps = {text: x for x, text in drawn.x_ticks}
    assert (first[1], last[1]) == (ticks["0"], ticks["10"])
    assert middle[1] == pytest.approx(ticks["0"] + (ticks["10"] - ticks["0"]) / 4, abs=0.1)
    assert (first[0], last[0]) == (steps["0"], steps["100"])
    assert middle[0] == pytest.approx((first[0] + last[0]) / 2, abs=0.1)


def test_logarithmic_axis_maps_equal_factors_to_equal_distances():
    points = [(0, 1000.0), (1, 10.0), (2, 0.1)]
    ((first, middle, last),) = chart([Series("x", points)], may_log=True).curves[0].lines
    assert middle[1] - first[1] == pytest.approx(last[1] - middle[1], abs=0.2)
    ((first, middle, last),) = chart([Series("x", points)]).curves[0].lines
    assert last[1] - middle[1] < 0.02 * (middle[1] - first[1])
    zero = [*points, (3, 0.0)]  # zero has no logarithm
    assert chart([Series("x", zero)], may_log=True) == chart([Series("x", zero)])


def test_gaps_stay_and_empty_curves_are_left_out():
    holes = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 2.0), (4, math.inf)]
    (curve,) = chart([Series("empty", [(0, math.nan)]), Series("x", holes)]).curves
    assert curve.name == "x" and [len(line) for line in curve.lines] == [2, 1]
    with pytest.raises(ValueError, match="no curve has a finite value"):
        chart([Series("empty", [(0, math.nan)])])


def test_long_curves_are_smoothed_and_keep_their_spikes():
    rng = np.random.default_rng(0)
    values = 5 + rng.normal(size=10_000)
    values[4321] = 50.0
    (curve,) = chart([Series("x", list(enumerate(values)))]).curves
    (noisy,), (smooth,) = curve.noisy, curve.lines
    assert len(noisy) <= 400
    assert len(smooth) <= 400
    assert min(y for _, y in noisy) == pytest.approx(16, abs=0.1)  # the last tick, 50, is at the top
    assert np.std([y for _, y in smooth][20:]) < 0.1 * np.std([y for _, y in noisy])
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in noisy + smooth)
    steps = [x for x, _ in noisy]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3.2, 17), (0.00012, 0.00013), (5, 5), (0, 0), (99_900, 100_100), (-1e-9, 1e9)]
)
def test_linear_ticks_are_round_and_enclose_the_values(low, high):
    ticks = linear_ticks(low, high)
    gap = ticks[1] - ticks[0]
    assert ticks[0] <= low + 1e-9 * gap
    assert ticks[-1] >= high - 1e-9 * gap
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), gap, rtol=1e-6)
    assert any(
        float(f"{gap:.6g}") == pytest.approx(step * 10.0 ** math.floor(math.log10(gap) + 1e-6)) for step in (1, 2, 5)
    )


@pytest.mark.parametrize(("low", "high"), [(1, 20), (0.003, 0.9), (1e-8, 1e8), (10, 1000), (2, 50)])
def test_log_ticks_enclose_the_values(low, high):
    ticks = log_ticks(low, high)
    assert ticks == sorted(set(ticks))
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 10


def test_labels_are_short():
    assert [label(value) for value in (0, 0.25, 2e-5, 1500, 250_000, 2e6, -3e9)] == [
        *("0", "0.25", "2e-05", "1.5k", "250k", "2M", "-3G")
    ]
