"""The pages in Chromium: no errors, all images there, nothing fetched, nothing wider than a telephone."""

import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from flax_vae.images.scores import compare_images
from flax_vae.train.report.compare import write_run_comparison
from flax_vae.train.report.html import write_report
from flax_vae.train.report.metrics_lines import to_line
from flax_vae.train.report.pictures import save_comparisons
from flax_vae.train.run.directory import RunDirectory

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE, SCREEN = 390, 1280  # widths in pixels
HOSTILE = "<script>window.broken = 1</script>"

# Added to a copy of each page.  A page has no scripts of its own, so these are all that run.
PROBE = """
<script>
window.onerror = (message) => { window.failed = message; };
window.onload = () => parent.postMessage({
  title: document.title,
  broken: window.broken || window.failed || null,
  scripts: document.scripts.length,
  images: [...document.images].map((image) => image.complete && image.naturalWidth > 0),
  fetched: performance.getEntriesByType("resource").map((one) => one.name).filter((one) => !one.startsWith("data:")),
  width: document.documentElement.scrollWidth,
  inside: window.innerWidth,
}, "*");
</script>
"""
HARNESS = """<!doctype html>
<pre id="found"></pre>
<script>
const found = [];
window.onmessage = (event) => {
  found.push(event.data);
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>
"""


def make_run(path, config, offset):
    run = RunDirectory(path)
    run.begin(replace(config, data=replace(config.data, held_out="d.png")), {"d.png": "digest"})
    constant = {"skipped": 0.0, HOSTILE: 1.0, "images_per_second": 9.0}
    rows = [{"step": step, "loss": math.exp(-step / 40), "kl": 900.0 + step} | constant for step in range(1, 101)]
    photograph = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    for row in rows[49::50]:
        row |= {"psnr": 20.0 + row["step"] / 20, "ssim": 0.5}
        shown = [compare_images(HOSTILE, photograph, np.minimum(photograph, 255 - offset) + offset)]
        save_comparisons(run.sample(row["step"]), shown)
    run.metrics.write_text("".join(map(to_line, rows)))
    return run


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_pages_in_chromium(tmp_path, small):
    runs = [make_run(tmp_path / f"{name} <i>", small, offset) for name, offset in (("one", 8), ("two", 30))]
    write_run_comparison([run.path for run in runs], tmp_path / "compare.html")
    pages = {"report": write_report(runs[0].path), "compare": tmp_path / "compare.html"}
    harness = HARNESS
    for name, path in pages.items():
        text = path.read_text("utf-8")
        (tmp_path / f"{name}.probe.html").write_text(text.replace("</head>", f"{PROBE}</head>"), encoding="utf-8")
        for width in (PHONE, SCREEN):
            harness += f'<iframe src="{name}.probe.html" width="{width}" height="800"></iframe>\n'
    (tmp_path / "harness.html").write_text(harness, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [CHROMIUM, *options, "--virtual-time-budget=10000", "--dump-dom", (tmp_path / "harness.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    shown = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert shown is not None, done.stderr
    found = json.loads(html.unescape(shown[1]))
    assert len(found) == 4
    for page in found:
        assert page["broken"] is None and page["scripts"] == 1
        assert page["images"] and all(page["images"])
        assert page["fetched"] == []
        assert page["width"] <= page["inside"], page
    assert sorted(page["title"] for page in found) == 2 * ["one <i>"] + 2 * ["one <i>, two <i>"]
