"""Tests of tar archives: read by position, with an index that is kept and never stale."""

import gzip
import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from flax_vae.images.read import StorageError, file_digest
from flax_vae.images.sources import tar_index as indices
from flax_vae.images.sources.open import open_images
from flax_vae.images.sources.tar import sample_key
from flax_vae.train.errors import DataError

RNG = np.random.default_rng(0)
SIZES = [(8, 9), (10, 7), (6, 12), (9, 9)]
PIXELS = [RNG.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAX_VAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write(path, members, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            archive.addfile(info, None if content is None else io.BytesIO(content))
    return str(path)


def samples(numbers=range(4)):
    """Members as WebDataset writes them."""
    members = {}
    for number in numbers:
        members[f"{number:04}.png"] = encoded(PIXELS[number])
        members[f"{number:04}.cls"] = str(10 + number).encode()
        members[f"{number:04}.json"] = json.dumps({"caption": f"number {number}"}).encode()
    return members


def test_samples_of_a_webdataset_with_labels_and_captions(tmp_path):
    source = open_images(write(tmp_path / "x.tar", samples()))
    assert [source.name(index) for index in range(4)] == [f"{number:04}.png" for number in range(4)]
    assert [source.label(index) for index in range(4)] == [10, 11, 12, 13]
    assert [source.caption(index) for index in range(4)] == [f"number {number}" for number in range(4)]
    assert [source.size(index) for index in range(4)] == SIZES
    for index, pixels in enumerate(PIXELS):
        np.testing.assert_array_equal(source[index], pixels)
        for whole in (True, False):
            assert source.digest(index, whole=whole) == file_digest(encoded(pixels), whole=whole)
    assert source.notes == []


@pytest.mark.parametrize("pattern", ["{000..001}.tar", "{000,001}.tar", "*.tar"])
def test_several_archives_are_one_source(tmp_path, pattern):
    write(tmp_path / "000.tar", samples([0, 1]))
    write(tmp_path / "001.tar", samples([2, 3]))
    source = open_images(str(tmp_path / pattern))
    assert [source.name(index) for index in range(4)] == ["000.tar/0000.png", "000.tar/0001.png"] + [
        "001.tar/0002.png",
        "001.tar/0003.png",
    ]
    assert [source.label(index) for index in range(4)] == [10, 11, 12, 13]
    assert source.caption(3) == "number 3"
    for index, pixels in enumerate(PIXELS):
        np.testing.assert_array_equal(source[index], pixels)


def test_an_archive_of_class_folders_has_the_labels_of_the_folder(tmp_path):
    members = {
        ".": None,
        "./b": None,
        "./empty": None,
        "./b/x/1.png": encoded(PIXELS[0]),
        "./a/2.png": encoded(PIXELS[1]),
    }
    members |= {"./3.png": encoded(PIXELS[2]), "./.hidden/4.png": b"", "./read.me": b""}
    for name, content in members.items():
        if content is None:
            (tmp_path / "folder" / name).mkdir(parents=True, exist_ok=True)
        else:
            (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / name).write_bytes(content)
    folder, source = open_images(str(tmp_path / "folder")), open_images(write(tmp_path / "x.tar", members))
    assert source.classes == folder.classes == ("a", "b", "empty")
    labels = [{each.name(i): each.label(i) for i in range(len(each))} for each in (folder, source)]
    assert labels[0] == labels[1] == {"3.png": None, "a/2.png": 0, "b/x/1.png": 1}
    assert source.label_notes == folder.label_notes
    assert source.notes == ["besides: 2 other files (.hidden/4.png, read.me)"]


def test_an_index_is_built_once_and_again_when_the_archive_changes(tmp_path, monkeypatch, cache):
    built = []
    build = indices._build
    monkeypatch.setattr(indices, "_build", lambda *words: built.append(words) or build(*words))
    address = write(tmp_path / "x.tar", samples([0, 1]))
    first, second = open_images(address), open_images(address)
    assert len(built) == 1
    for ask in ("digest", "size", "label", "caption"):
        assert [getattr(second, ask)(index) for index in (0, 1)] == [getattr(first, ask)(index) for index in (0, 1)]
    with monkeypatch.context() as unread:
        unread.setattr("flax_vae.images.sources.tar.fetch_content", None)
        assert (second.label(1), second.caption(1), second.size(1)) == (11, "number 1", SIZES[1])

    write(tmp_path / "x.tar", samples([2, 3]))
    assert open_images(address).size(0) == SIZES[2] and len(built) == 2

    content, times = bytearray((tmp_path / "x.tar").read_bytes()), os.stat(address)
    content[512 + 60] ^= 1  # within the first image; size and time stay
    (tmp_path / "x.tar").write_bytes(content)
    os.utime(address, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert open_images(address).digest(0) != file_digest(encoded(PIXELS[2])) and len(built) == 3

    (file,) = (cache / "tars").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert len(open_images(address)) == 2 and len(built) == 4


def test_without_a_place_for_indices_archives_are_read_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLAX_VAE_CACHE", str(tmp_path / "file" / "below"))
    np.testing.assert_array_equal(open_images(write(tmp_path / "x.tar", samples()))[2], PIXELS[2])


def test_one_ending_is_chosen_of_samples_with_several_images(tmp_path):
    members = {"1.rgb.png": encoded(PIXELS[0]), "1.mask.png": encoded(PIXELS[1]), "1.txt": b"both"}
    address = write(tmp_path / "x.tar", members)
    assert "several images: 1 samples (1)" in open_images(address).notes[0]
    chosen = open_images(f"{address},image=rgb.png")
    assert (len(chosen), chosen.caption(0)) == (1, "both")
    assert [sample_key(name) for name in ("a.b/c.d.e", "c")] == ["a.b/c", "c"]


def test_long_captions_and_damaged_labels_are_read_where_they_lie(tmp_path):
    members = {"1.png": encoded(PIXELS[0]), "1.txt": b"long " * 2000, "2.png": encoded(PIXELS[1]), "2.txt": b""}
    members |= {"2.json": json.dumps({"label": 3, "size": [1, 2], "caption": "unused"}).encode()}
    address = write(tmp_path / "x.tar", members)
    for _ in range(2):  # of an index that was built, and of one that was kept
        source = open_images(address)
        assert [source.caption(index) for index in (0, 1)] == [("long " * 2000).strip(), ""]
        assert [source.label(index) for index in (0, 1)] == [None, 3]
    source = open_images(write(tmp_path / "y.tar", {"1.png": encoded(PIXELS[0]), "1.txt": b"a", "1.cls": b"cat"}))
    with pytest.raises(DataError, match="1.cls has the label 'cat'"):
        source.label(0)
    with pytest.raises(DataError, match="1.json is not a JSON object"):
        open_images(write(tmp_path / "z.tar", {"1.png": encoded(PIXELS[0]), "1.json": b"["}))


def damaged(content, how):
    if how == "cut within a member":
        return content[:700]
    if how == "cut after a member":
        return content[: content.rindex(b"0001.json") - 0]
    if how == "without an end":
        return content.rstrip(b"\0") + bytes(-len(content.rstrip(b"\0")) % 512)
    if how == "a header":
        at = content.index(b"0001.png")
        return content[:at] + b"!" + content[at + 1 :]
    if how == "two archives":
        return content + content
    if how == "gzip":
        return gzip.compress(content)
    return how.encode()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut within a member", r"x.tar is not a whole tar archive \(it ends within '0000.png'\)"),
        ("cut after a member", r"x.tar is not a whole tar archive \(it has no mark at its end"),
        ("without an end", r"x.tar is not a whole tar archive \(it has no mark at its end"),
        ("a header", r"x.tar is not a whole tar archive \(the header at byte .* is damaged"),
        ("two archives", "x.tar is not a whole tar archive .it goes on after its end"),
        ("gzip", "x.tar is compressed .gzip., so that .* unpack it to a plain .tar with gunzip"),
        ("", "x.tar is not a whole tar archive"),
        ("hello", "x.tar is not a whole tar archive"),
    ],
)
def test_a_damaged_archive_is_refused_in_one_sentence(tmp_path, how, message):
    write(tmp_path / "x.tar", samples([0, 1]))
    (tmp_path / "x.tar").write_bytes(damaged((tmp_path / "x.tar").read_bytes(), how))
    with pytest.raises(DataError, match=f"{message}.*") as caught:
        open_images(str(tmp_path / "x.tar"))
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_addresses_and_members_is_said(tmp_path):
    with pytest.raises(DataError, match="x.tar cannot be read .*does not exist"):
        open_images(str(tmp_path / "x.tar"))
    with pytest.raises(DataError, match=r"1.tar cannot be read .*does not exist"):
        write(tmp_path / "0.tar", samples())
        open_images(str(tmp_path / "{0..1}.tar"))
    with pytest.raises(DataError, match=r"has \{0..x\}; expected a range such as \{000..099\}"):
        open_images(str(tmp_path / "{0..x}.tar"))
    with pytest.raises(DataError, match="has the option 'imag=png'; did you mean 'image'"):
        open_images(str(tmp_path / "0.tar,imag=png"))
    with pytest.raises(DataError, match="names .*0.tar twice"):
        open_images(str(tmp_path / "{0,0}.tar"))
    with pytest.raises(DataError, match="0.npy,label=x has the option 'label=x'; such an address has no options"):
        open_images(str(tmp_path / "0.npy,label=x"))
    with pytest.raises(DataError, match="holds no image"):
        open_images(write(tmp_path / "none.tar", {"a.txt": b""}))
    source = open_images(write(tmp_path / "bad.tar", {"a.png": b"hello", "b.png": encoded(PIXELS[0])}))
    with pytest.raises(DataError, match=r"bad.tar\[a.png\] is not an image"):
        source.size(0)
    os.truncate(tmp_path / "bad.tar", 1500)
    with pytest.raises(StorageError, match=r"bad.tar\[b.png\] was cut off"):
        source[1]
