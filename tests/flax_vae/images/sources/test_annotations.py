"""Tests of labels and captions: those of folders are numbered as torchvision's `ImageFolder` numbers them."""

import json
import os

import pytest
from PIL import Image

from flax_vae.images.sources.open import open_images
from flax_vae.train.errors import DataError

NESTED = ("b/x/1.png", "b/2.png", "B/3.jpg", "a/b/c/4.png", "10/5.png", "9/6.png", "é/7.png")


def write(folder, *images, **texts):
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return str(folder)


def torchvision_numbers(root):
    """The rule of `torchvision.datasets.folder`, from its documentation: class folders sorted by name, walked below."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    found = {}
    for number, name in enumerate(classes):
        for folder, _, files in os.walk(os.path.join(root, name), followlinks=True):
            for file in files:
                found[os.path.relpath(os.path.join(folder, file), root)] = number
    return classes, found


def labels(source):
    return {source.name(index): source.label(index) for index in range(len(source))}


def test_class_folders_are_numbered_as_torchvision_numbers_them(tmp_path):
    source = open_images(write(tmp_path, *NESTED))
    classes, numbers = torchvision_numbers(tmp_path)
    assert list(source.classes) == classes
    assert labels(source) == numbers and len(set(numbers.values())) == 6
    assert source.label_notes == ("labels are the 6 folders at the top, sorted (10, 9, B and 3 more)",)


def test_images_outside_class_folders_and_folders_without_images_are_told(tmp_path):
    (tmp_path / "0").mkdir()
    source = open_images(write(tmp_path, "a/1.png", "x.png"))
    assert (source.classes, labels(source)) == (("0", "a"), {"a/1.png": 1, "x.png": None})
    assert source.label_notes[1:] == (
        "without a label: 1 images outside these folders (x.png)",
        "without images, but with a number: 1 of these folders (0)",
    )
    assert source.notes == []


def test_a_flat_folder_has_no_labels(tmp_path):
    source = open_images(write(tmp_path, "1.png"))
    assert (source.label(0), source.caption(0), source.classes, source.label_notes) == (None, None, (), ())


def test_files_beside_images_give_labels_and_captions(tmp_path):
    write(tmp_path, "a/1.png", "a/2.v1.png", "3.png")
    (tmp_path / "a/1.cls").write_text("7\n")
    (tmp_path / "a/1.txt").write_text("\ufeffa cat, été\n", encoding="utf-8")
    (tmp_path / "a/2.v1.json").write_text(json.dumps({"label": 3, "caption": "a dog"}))
    (tmp_path / "more.txt").write_text("belongs to no image")
    source = open_images(str(tmp_path))
    assert labels(source) == {"3.png": None, "a/1.png": 7, "a/2.v1.png": None}
    assert [source.caption(index) for index in range(3)] == [None, "a cat, été", "a dog"]
    assert source.classes == () and source.label_notes == ("labels are the numbers in .cls files beside images",)
    assert source.notes == ["besides: 1 other file (more.txt)"]
    (tmp_path / "a/1.cls").unlink()
    assert labels(open_images(str(tmp_path))) == {"3.png": None, "a/1.png": None, "a/2.v1.png": 3}


def test_endings_in_capitals_are_those_of_files_beside_images_too(tmp_path):
    folder = write(tmp_path, "A.PNG", "b.png", **{"A.CLS": "5", "A.TXT": "first", "b.Txt": "b", "b.txt": "second"})
    source = open_images(folder)
    assert labels(source) == {"A.PNG": 5, "b.png": None}
    assert [source.caption(index) for index in range(2)] == ["first", "second"]


def test_labels_that_are_text_are_told_and_not_read(tmp_path):
    source = open_images(write(tmp_path, "a/1.png", "b/2.png", **{"b/2.json": json.dumps({"label": "cat"})}))
    assert labels(source) == {"a/1.png": 0, "b/2.png": 1}
    assert source.label_notes[0].startswith("the labels of .json files are text ('cat') and are not read")


def test_a_list_of_labels_at_the_top_comes_first(tmp_path):
    write(tmp_path, "00000/1.png", "00000/2.png", "00001/3.png")
    pairs = [["00000/1.png", 7], ["00000/2.png", 0]]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": pairs}))
    source = open_images(str(tmp_path))
    assert labels(source) == {"00000/1.png": 7, "00000/2.png": 0, "00001/3.png": None}
    assert (source.classes, source.label_notes) == ((), ("labels are the numbers in dataset.json",))
    assert source.notes == []
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": None}))
    assert labels(open_images(str(tmp_path)))["00001/3.png"] == 1


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1.cls", b"cat", "1.cls has the label 'cat'; expected a whole number from 0"),
        ("1.cls", b"-1", "1.cls has the label '-1'; expected a whole number from 0"),
        ("1.json", b'{"label": 1.5}', "1.json has the label 1.5; expected a whole number"),
        ("1.json", b"[1]", "1.json is not a JSON object"),
        ("1.json", b'{"caption": 3}', "1.json has the caption 3; expected a string"),
        ("1.txt", b"\xff\xfe", "1.txt is not UTF-8 text"),
        ("dataset.json", b'{"labels": [1]}', "dataset.json is not a list of labels"),
        ("dataset.json", b'{"labels": [["1.png", [0, 1]]]}', r"dataset.json.1.png. has the label \[0, 1\]"),
    ],
)
def test_damaged_labels_and_captions_are_refused_by_name(tmp_path, file, content, message):
    write(tmp_path, "1.png")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        source = open_images(str(tmp_path))
        assert (source.label(0), source.caption(0)) == "an error"
