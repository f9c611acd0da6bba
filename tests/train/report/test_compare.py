"""Tests of the page that compares runs: what it shows of runs that differ, and of those that lack something."""

import base64
import io
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flax_vae.convert.files import write_at
from flax_vae.images.scores import compare_images
from flax_vae.train.cli.main import main
from flax_vae.train.errors import RunError
from flax_vae.train.report.compare import write_run_comparison
from flax_vae.train.report.metrics_lines import to_line
from flax_vae.train.report.pictures import save_comparisons
from flax_vae.train.run.directory import RunDirectory
from tests.train.report.test_html import Page

PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
OTHER = PHOTOGRAPH[::-1]
REPEATED = ("svg", "img", "input", "polyline")


def make_run(path, config, *, steps=6, every=2, speed=8.0, photographs=(PHOTOGRAPH,), offset=8):
    """Returns a run with a line for each step, and a picture every few steps."""
    run = RunDirectory(path)
    config = replace(config, data=replace(config.data, held_out="d.png"))
    run.begin(config, {"d.png": "digest"})
    rows = [
        {"step": step, "loss": 1 / step, "kl": 5.0 * step, "skipped": 0.0, "images_per_second": speed}
        for step in range(1, steps + 1)
    ]
    for row in rows[every - 1 :: every]:
        row |= {"psnr": 20.0 + row["step"], "ssim": 0.5}
        shown = [compare_images("d & <d>.png", one, np.minimum(one, 255 - offset) + offset) for one in photographs]
        save_comparisons(run.sample(row["step"]), shown)
    run.metrics.write_text("".join(map(to_line, rows)))
    return run


@pytest.fixture
def compared(tmp_path):
    """Returns a function that compares runs, and returns the page and its remarks."""

    def compare(*runs):
        notes = write_run_comparison([run.path for run in runs], tmp_path / "page.html")
        return Page((tmp_path / "page.html").read_text(encoding="utf-8")), notes

    return compare


def charts(page):
    return [attrs["aria-label"] for attrs in page.of("svg")]


def cells(page, name):
    """Returns the texts that follow a name up to the end of its row, as many as there are runs."""
    place = page.texts.index(name)
    return page.texts[place + 1 : place + 3]


def test_runs_of_different_lengths_are_drawn_over_each_other(tmp_path, small, compared):
    one = make_run(tmp_path / "short", replace(small, batch_size=2), steps=4, speed=1.0)
    other = make_run(tmp_path / "long", replace(small, batch_size=4), steps=8, speed=4.0)
    page, notes = compared(one, other)
    assert notes == []
    quantities = ["Loss", "PSNR", "SSIM", "KL", "Speed"]
    axes = ["steps", "images", "training time in seconds"]
    assert charts(page) == [f"{name}: short, long over {axis}" for axis in axes for name in quantities]
    assert ["checked" in choice for choice in page.of("input") if choice["name"] == "axis"] == [True, False, False]
    # Four steps of 2 images at 1 image per second end with eight steps of 4 images at 4 images per second.
    ends = [[line["points"].split()[-1].split(",")[0] for line in page.of("polyline")][2 * i :][:2] for i in (0, 5, 10)]
    rights = [[float(place) for place in end] for end in ends]
    assert [(short - 62) / (long - 62) for short, long in rights] == pytest.approx([4 / 8, 8 / 32, 1], abs=0.01)
    assert "Always zero: skipped updates." in page.texts


def test_the_page_needs_no_other_file_and_escapes_names(tmp_path, small, compared):
    runs = [make_run(tmp_path / name, small) for name in ("<b>&amp;", "'\"><script>")]
    page, _ = compared(*runs)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|<script|<link|<b>&amp;", text)
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.of("img"))
    assert not [name for name, attrs in page.elements for attr in attrs if attr.startswith("on")]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(ids)) == len(ids) and sorted(ids) == sorted(label["for"] for label in page.of("label"))


def test_settings_that_differ_are_shown_and_equal_ones_folded(tmp_path, small, compared):
    other = replace(small, loss=replace(small.loss, lpips_weight=0.5), seed=7)
    page, _ = compared(make_run(tmp_path / "one", small), make_run(tmp_path / "two", other))
    folded = page.texts.index(next(text for text in page.texts if text.endswith("settings that are equal")))
    assert cells(page, "seed") == ["0", "7"] and page.texts.index("seed") < folded
    assert cells(page, "loss.lpips_weight") == ["0.0", "0.5"]
    assert page.texts.index("optim.learning_rate") > folded
    assert page.of("details") == [{}]


def test_scores_name_the_best_and_what_is_unfinished(tmp_path, small, compared):
    one, two = (make_run(tmp_path / name, replace(small, steps=6), steps=steps) for name, steps in (("a", 6), ("b", 4)))
    one.export.mkdir()
    page, _ = compared(one, two)
    assert {"6", "4 of 6, unfinished", "26.00", "24.00"} <= set(page.texts)
    follow = list(itertools.pairwise(page.texts))
    assert ("6", "26.00") in follow and ("4 of 6, unfinished", "24.00") in follow
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert re.findall(r"<td><b>(.*?)</b>", text) == ["26.00", "0.500", "0.500"]  # two with one score are both best


def test_a_photograph_is_a_row_with_a_column_for_each_run(tmp_path, small, compared):
    one = make_run(tmp_path / "one", small, photographs=(PHOTOGRAPH, OTHER), offset=8)
    two = make_run(tmp_path / "two", small, photographs=(PHOTOGRAPH,), offset=16)
    page, _ = compared(one, two)
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(i["src"].split(",")[1])))) for i in page.of("img")]
    expected = [PHOTOGRAPH, *(np.minimum(PHOTOGRAPH, 255 - offset) + offset for offset in (8, 16))]
    expected += [OTHER, np.minimum(OTHER, 247) + 8]
    assert len(pictures) == 3 * len(expected)  # last, and at the steps 2 and 4
    for found, wanted in zip(pictures, expected, strict=False):
        np.testing.assert_array_equal(found, wanted)
    assert page.texts.count("two · no picture") == 3
    assert [choice for choice in page.texts if choice in ("last", "step 4", "step 2")] == ["last", "step 4", "step 2"]


def test_what_is_missing_or_damaged_is_said(tmp_path, small, compared):
    new = RunDirectory(tmp_path / "new")
    new.begin(small)
    damaged = make_run(tmp_path / "damaged", small)
    lines = damaged.metrics.read_text().splitlines()
    damaged.metrics.write_text("\n".join([*lines[:2], lines[2].replace("15.0", "16.0"), *lines[3:], '{"step": 9, "l']))
    damaged.sample(6).write_bytes(damaged.sample(6).read_bytes()[:100])
    whole = RunDirectory(tmp_path / "of before")
    whole.begin(small)
    Image.fromarray(PHOTOGRAPH).save(whole.sample(6))  # of a version that did not write where the parts are
    page, notes = compared(new, damaged, whole, damaged)
    assert notes[0] == "a run that was given twice is shown once"
    said = " ".join(notes)
    for phrase in ("new: no scores yet", "new: no pictures", "damaged: 2 of 7 lines of metrics.jsonl are damaged"):
        assert phrase in said
    assert "step_0000006.png cannot be read" in said and "hold out" in said.replace("held out", "hold out")
    assert set(notes) <= set(page.texts)
    assert charts(page)[0] == "Loss: damaged over steps"
    content = whole.sample(6).read_bytes()
    assert content in [base64.b64decode(image["src"].split(",")[1]) for image in page.of("img")]


def test_one_run_alone_and_runs_of_one_name(tmp_path, small, compared):
    page, notes = compared(make_run(tmp_path / "a" / "run", small))
    assert notes == [] and "One run has none." in page.texts and "Loss: run over steps" in charts(page)
    page, _ = compared(RunDirectory(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", small))
    assert "Loss: a/run, b/run over steps" in charts(page) and "None." in page.texts


def test_changed_settings_of_a_resumed_run_are_remarked(tmp_path, small, compared):
    run = make_run(tmp_path / "run", small)
    config = json.loads((run.path / "config.json").read_text())
    history = {"history": [{"after_step": 4, "changed": ["batch_size: 8 -> 4"]}]}
    (run.path / "config.json").write_text(json.dumps(config | history))
    assert compared(run)[1] == ["run: changed after step 4: batch_size: 8 -> 4"]


def test_command_writes_the_page_and_refuses_what_is_no_run(tmp_path, small, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", small)
    assert main(["compare", "run"]) == 0
    assert capsys.readouterr().out == "compare.html\n"
    assert main(["compare", "run", "nowhere", "--output", "other.html"]) == 1
    assert "nowhere holds no run" in capsys.readouterr().err and not (tmp_path / "other.html").exists()
    with pytest.raises(RunError, match="0 runs; pass 1 to 12"):
        write_run_comparison([], tmp_path / "page.html")


def test_a_run_in_a_bucket_is_shown_as_one_in_a_folder(tmp_path, small, bucket):
    run, there = make_run(tmp_path / "here", small), f"{bucket}/compared/there"
    for path in filter(Path.is_file, run.path.rglob("*")):
        write_at(f"{there}/{path.relative_to(run.path).as_posix()}", path.read_bytes())
    assert main(["compare", str(run.path), there, "--output", str(tmp_path / "page.html")]) == 0
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert f"there: {there}" in page.texts and "Loss: here, there over steps" in charts(page)
    sources = [image["src"] for image in page.of("img")]
    assert len(sources) == 9 and sources[1::3] == sources[2::3]  # beside each original
