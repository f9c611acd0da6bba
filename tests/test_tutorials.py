"""The tutorials run as they stand there, print what they show, and write their pictures."""

import fcntl
import importlib.util
import os
import re

import numpy as np
import pytest
from PIL import Image

from tests.tutorials import FOLDER, PAGES, PICTURE, agree, cells, run

FIRST = "train-from-scratch"  # whose model stands in for that of a longer run, which the other pages begin with


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    """Folder in which the first page ran, with what its cells printed; once in a session, for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / FIRST
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "printed").exists():
            (folder / "printed").write_text("\0".join(run(PAGES[FIRST], folder)))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_tutorial(page, scratch, tmp_path):
    text = PAGES[page].read_text("utf-8")
    for package in ("torch", "diffusers"):
        if re.search(rf"^(import|from) {package}\b", text, re.MULTILINE) and not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed")
    if page == FIRST:
        tmp_path, printed = scratch, (scratch / "printed").read_text().split("\0")
    else:
        (tmp_path / "runs" / "tiny").mkdir(parents=True)
        (tmp_path / "runs" / "tiny" / "export").symlink_to(scratch / "runs" / "scratch" / "export")
        printed = run(PAGES[page], tmp_path)
    for cell, its in zip(cells(text), printed, strict=True):
        assert cell.output is None or agree(cell.output, its), f"{cell.source}\nprinted\n{its}"
    pictures = PICTURE.findall(text)
    assert pictures
    for name in pictures:
        with Image.open(FOLDER / "pictures" / name) as shown, Image.open(tmp_path / name) as written:
            assert shown.size == written.size
            assert np.asarray(written).std() > 10  # not of one colour


@pytest.mark.parametrize("page", PAGES)
def test_page_says_what_it_makes_and_ends_with_a_picture(page):
    text = PAGES[page].read_text("utf-8")
    assert "makes" in text.split("\n## ")[0].split("\n\n", 1)[1]
    last = [part for part in text.split("\n## ") if "```python" in part][-1]
    for name in PICTURE.findall(last):
        assert f'"{name}"' in last and (FOLDER / "pictures" / name).stat().st_size <= 150_000
    assert PICTURE.findall(last)


def test_outputs_agree_but_for_numbers():
    assert agree("step 10  loss 0.5\n", "step  20  loss 1e-3\n")
    assert agree("a 1\n...\nb\n", "a 2\nx\ny\nb\n")
    assert not agree("loss 0.5\n", "loss nan\n")
    assert not agree("True\n", "False\n")
    assert not agree("a\n", "a\nb\n")
