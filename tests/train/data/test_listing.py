"""What is known of the content of training data: another image under the same name is another listing."""

import errno
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flax_vae.images.read import StorageError
from flax_vae.train.config.schema import DataConfig
from flax_vae.train.data.listing import data_listing, digest_of_listing, find_changes, how_listed
from flax_vae.train.data.photographs import Photographs
from tests.flax_vae.images.sources.test_sources import WRITERS


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


@pytest.mark.parametrize("damage", ["flip", "cut", "rename", "remove", "replace"])
def test_whatever_changes_an_image_changes_the_digest_and_names_it(photographs, tmp_path, damage):
    before, digest = data_listing(photographs()), digest_of_listing(data_listing(photographs()))
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
    assert digest_of_listing(data_listing(photographs())) != digest
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


def write_folder(path):
    path.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path / f"{index}.png")
    return path


def listed(folder, how=None, **limits):
    return data_listing(Photographs(DataConfig(folder=str(folder), crop_size=8)), how, **limits)


def edit(path):
    """Changes the last bytes of the content, and nothing else: not the size, not even the time."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "edited": (lambda folder: edit(folder / "3.png"), ["1 edited (3.png)"]),
    "exchanged": (lambda folder: shutil.copy(folder / "0.png", folder / "5.png"), ["1 edited (5.png)"]),
    "removed": (lambda folder: (folder / "2.png").unlink(), ["1 removed (2.png)"]),
    "added": (lambda folder: shutil.copy(folder / "0.png", folder / "zz.png"), ["1 added (zz.png)"]),
    "renamed": (lambda folder: (folder / "2.png").rename(folder / "9.png"), ["1 removed (2.png)", "1 added (9.png)"]),
    "several": (
        lambda folder: [edit(folder / f"{i}.png") for i in range(5)],
        ["5 edited (0.png, 1.png, 2.png and 2 more)"],
    ),
}


@pytest.mark.parametrize("how", ["content", "ends"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_said_with_the_first_names(tmp_path, change, how):
    folder = write_folder(tmp_path / "data")
    before = listed(folder, how)
    assert (how_listed(before), find_changes(before, listed(folder, how))) == (how, [])
    make, phrases = CHANGES[change]
    make(folder)
    assert find_changes(before, listed(folder, how)) == phrases


def test_another_order_is_a_change():
    assert find_changes({"a": "1", "b": "2"}, {"b": "2", "a": "1"}) == ["the images are in another order"]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))
def test_of_a_large_data_set_the_ends_of_each_image_are_read(tmp_path, write):
    address = write(tmp_path / "data")
    content = listed(address)
    ends = listed(address, most_bytes=6 * 100)
    assert (how_listed(content), how_listed(ends)) == ("content", "ends")
    assert list(content) == list(ends)
    assert [text.split(" bytes")[0] for text in content.values()] == [text.split(" bytes")[0] for text in ends.values()]
    # Found again elsewhere, and by the way it was made in, whatever the size is today.
    assert listed(write(tmp_path / "elsewhere"), "ends") == ends
    assert listed(address, how_listed(content)) == content


def test_the_middle_of_large_images_is_read_in_small_data_sets_alone(tmp_path):
    pixels = np.zeros((3, 64, 64, 3), np.uint8)
    (tmp_path / "folder").mkdir()
    for where, seen in {0: True, 4095: True, 6000: False, -4096: True, -1: True}.items():
        for kept in ("array", "folder"):
            file = tmp_path / "x.npy" if kept == "array" else tmp_path / "folder" / "b.bmp"
            address = tmp_path / "x.npy" if kept == "array" else tmp_path / "folder"
            if kept == "array":
                np.save(file, pixels)
            else:
                Image.fromarray(pixels[0]).save(file)
                Image.fromarray(pixels[1]).save(file.with_name("c.bmp"))
            before = {how: listed(address, how) for how in ("content", "ends")}
            if kept == "array":
                changed = pixels.copy()
                changed[1].reshape(-1)[where] = 1
                np.save(file, changed)
            elif where:  # the first bytes of a file say what it is
                content = bytearray(file.read_bytes())
                content[where] = 1
                file.write_bytes(content)
            name = "1" if kept == "array" else "b.bmp"
            if kept == "array" or where:
                assert find_changes(before["content"], listed(address, "content")) == [f"1 edited ({name})"]
                assert bool(find_changes(before["ends"], listed(address, "ends"))) == seen, (kept, where)


def test_a_file_that_is_gone_ends_it_and_one_that_may_not_be_read_is_listed(tmp_path, monkeypatch):
    photographs = Photographs(DataConfig(folder=str(write_folder(tmp_path / "data")), crop_size=8))
    monkeypatch.setattr("flax_vae.images.read.hashlib.file_digest", fail(PermissionError(errno.EACCES, "")))
    assert set(data_listing(photographs).values()) == {"unreadable"}
    monkeypatch.setattr("flax_vae.images.read.hashlib.file_digest", fail(OSError(errno.EIO, "")))
    with pytest.raises(StorageError, match="0.png cannot be opened .Input/output error.; start again when it can"):
        data_listing(photographs)
    (tmp_path / "data" / "3.png").unlink()
    with pytest.raises(StorageError, match="3.png cannot be opened .No such file"):
        data_listing(photographs, "ends")


def fail(error):
    def read(*_):
        raise error

    return read
