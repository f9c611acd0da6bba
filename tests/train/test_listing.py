"""What is known of the content of training data: another image under the same name is another listing."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from train import listing
from train.config import DataConfig
from train.data import Photographs
from train.listing import data_listing, data_listing_digest


@pytest.fixture
def photographs(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    config = DataConfig(folder=str(tmp_path / "copy"), crop_size=16, bad_files="skip", max_bad_fraction=0.9)

    def opened(**changes):
        return Photographs(replace(config, **changes))

    return opened


def test_a_copy_has_the_same_digest_whatever_it_is_called(folder, photographs):
    original = Photographs(DataConfig(folder=str(folder), crop_size=16))
    assert data_listing(original) == data_listing(photographs())
    assert list(data_listing(original)) == ["a.png", "b.jpg", "d.png", "sub/c.png"]  # held out or not
    assert data_listing_digest(original) == data_listing_digest(photographs())


@pytest.mark.parametrize("damage", ["flip", "cut", "rename", "remove", "replace"])
def test_whatever_changes_an_image_changes_the_digest_and_names_it(photographs, tmp_path, damage):
    before, digest = data_listing(photographs()), data_listing_digest(photographs())
    file = tmp_path / "copy" / "b.jpg"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:60])
    elif damage == "rename":
        file.rename(file.with_name("e.jpg"))
    elif damage == "remove":
        file.unlink()
    else:
        shutil.copy(tmp_path / "copy" / "a.png", file)
    after = data_listing(photographs())
    assert data_listing_digest(photographs()) != digest
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == ({"b.jpg", "e.jpg"} if damage == "rename" else {"b.jpg"})


def test_pixels_of_an_array_have_digests_too(tmp_path):
    pixels = np.zeros((5, 16, 16, 3), np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    before = data_listing(Photographs(DataConfig(folder=str(tmp_path / "x.npy"), crop_size=16)))
    pixels[3, 2, 1, 0] = 1
    np.save(tmp_path / "x.npy", pixels)
    after = data_listing(Photographs(DataConfig(folder=str(tmp_path / "x.npy"), crop_size=16)))
    assert [name for name in before if before[name] != after[name]] == ["3"]


def test_of_many_images_some_that_lie_all_over_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "MOST_IMAGES", 100)
    np.save(tmp_path / "x.npy", np.zeros((1000, 16, 16, 3), np.uint8))
    photographs = Photographs(DataConfig(folder=str(tmp_path / "x.npy"), crop_size=16))
    known = data_listing(photographs)
    read = [int(name) for name, text in known.items() if text]
    assert len(known) == 1000 and len(read) == 100
    assert max(np.diff(sorted(read))) == 10

    monkeypatch.setattr(listing, "MOST_BYTES", 32 * 768)  # an image has 768
    read = [int(name) for name, text in data_listing(photographs).items() if text]
    assert len(read) == 32
    assert max(np.diff(sorted(read))) < 100
