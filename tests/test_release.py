"""What is published: one version in all files, and everything that the installed package needs, licences among it."""

import datetime
import importlib.metadata
import re
from pathlib import Path, PurePosixPath

import pytest
from ruamel.yaml import YAML

import flax_vae

ROOT = Path(__file__).parents[1]
DISTRIBUTION = importlib.metadata.distribution("flax-vae")
INSTALLED = [PurePosixPath(file) for file in DISTRIBUTION.files or []]
WHEEL = PurePosixPath("flax_vae/__init__.py") in INSTALLED

of_a_clone = pytest.mark.skipif(not (ROOT / "CHANGELOG.md").exists(), reason="these tests run without a clone")
of_a_wheel = pytest.mark.skipif(not WHEEL, reason="flax-vae is installed from a clone; .ci/run tests a wheel")


def test_the_metadata_are_complete():
    told = DISTRIBUTION.metadata
    assert told["Version"] == flax_vae.__version__
    assert told["License-Expression"] == "Apache-2.0 AND CC0-1.0"
    assert told.get_all("License-File") == ["LICENSE", "train/photographs/LICENSES.md"]
    assert told["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in told.get_all("Classifier", [])
    assert told["Description-Content-Type"] == "text/markdown"


@of_a_clone
def test_changelog_and_citation_name_this_version():
    released = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert released[0] == ("Unreleased", "")
    version, date = released[1]
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert version == citation["version"] == flax_vae.__version__
    assert date == citation["date-released"] == datetime.date.fromisoformat(date).isoformat()


@of_a_clone
def test_the_photographs_licences_name_each_of_them():
    folder = ROOT / "train" / "photographs"
    told = set(re.findall(r"^\| `(.+?)` \|", (folder / "LICENSES.md").read_text("utf-8"), re.M))
    assert told == {file.name for file in folder.glob("*.jpg")}


@of_a_wheel
def test_the_wheel_has_what_it_needs_and_nothing_else():
    info = f"flax_vae-{flax_vae.__version__}.dist-info"
    assert {file.parts[0] for file in INSTALLED} <= {"flax_vae", "torch_ref", info, ".."}  # the last for commands
    train = PurePosixPath("flax_vae/train")
    assert len([file for file in INSTALLED if file.match("photographs/*.jpg")]) == 6
    assert {train / "photographs/LICENSES.md", train / "report/report.css"} <= set(INSTALLED)
    licences = [file for file in INSTALLED if file.parts[:2] == (info, "licenses")]
    assert sorted(file.name for file in licences) == ["LICENSE", "LICENSES.md"]
