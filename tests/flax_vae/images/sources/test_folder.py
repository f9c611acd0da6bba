"""Tests of listing folders: every entry is listed."""

import os

import pytest
from PIL import Image

from flax_vae.errors import DataError
from flax_vae.images.scan import scan_images
from flax_vae.images.sources.folder import list_folder
from flax_vae.images.sources.open import open_images


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_every_entry_is_listed(tmp_path):
    images = ["a.jfif", "b.jpe", "c.avif", "d.gif", "e.jp2", "f.tga", "g.ppm", "h/i.PNG", "j.webp"]
    touch(tmp_path, *images, "k.heic", "k2.HEIC", "l.psd", "m.mp4", "n.txt", "o/p.json", "q")
    touch(tmp_path, ".DS_Store", "Thumbs.db", "._x.jpg", ".hidden/y.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dead.png").symlink_to("nowhere.png")
    (tmp_path / "itself.png").symlink_to("itself.png")
    listed = list_folder(tmp_path)
    assert listed.images == tuple(images)
    assert listed.unread == ("k.heic", "k2.HEIC", "l.psd", "m.mp4")
    assert listed.other == (".DS_Store", "._x.jpg", ".hidden", "Thumbs.db", "n.txt", "o/p.json", "q")
    assert listed.lost == ("dead.png", "itself.png", "pipe.png")
    heif, lost, other = listed.notes
    assert "4 files (k.heic, k2.HEIC, l.psd and 1 more)" in heif and "pillow-heif" in heif and "ffmpeg" in heif
    assert lost == "not read: 3 links to nowhere or pipes (dead.png, itself.png, pipe.png)"
    assert other == "besides: 7 other files (.DS_Store, ._x.jpg, .hidden and 4 more)"


def test_a_folder_of_images_has_no_notes(tmp_path):
    touch(tmp_path, "a.png", "b/c.png")
    assert list_folder(tmp_path).notes == []


def test_links_are_followed_and_each_folder_is_listed_once(tmp_path):
    """Follows links to other folders and files, back, to neighbours, and to other links."""
    folder = tmp_path / "folder"
    touch(tmp_path, "outside/deep/x.png", "folder/real/y.png", "folder/z.png")
    (folder / "a_class").symlink_to(tmp_path / "outside", target_is_directory=True)
    (folder / "b_again").symlink_to("a_class", target_is_directory=True)
    (folder / "a_real").symlink_to("real", target_is_directory=True)
    (folder / "real" / "up").symlink_to("..", target_is_directory=True)
    (tmp_path / "outside" / "deep" / "up").symlink_to("..", target_is_directory=True)
    (folder / "w.png").symlink_to(tmp_path / "outside" / "deep" / "x.png")
    listed = list_folder(folder)
    assert listed.images == ("a_class/deep/x.png", "real/y.png", "w.png", "z.png")
    assert listed.repeated == ("a_class/deep/up", "a_real", "b_again", "real/up")
    assert listed.notes == [
        "not read twice: 4 linked folders (a_class/deep/up, a_real, b_again and 1 more), listed under another name"
    ]


def test_listing_many_links_is_fast(tmp_path):
    """Lists thirty folders with two links each to the next, which makes 2**30 paths to the last."""
    for number in range(30):
        touch(tmp_path, f"{number:02}/x.png")
        for name in ("p", "q"):
            (tmp_path / f"{number:02}" / name).symlink_to(
                tmp_path / f"{(number + 1) % 30:02}", target_is_directory=True
            )
    assert len(list_folder(tmp_path / "07").images) == 30


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_cannot_be_listed_is_refused(tmp_path):
    touch(tmp_path, "a.png", "b/c.png")
    (tmp_path / "b").chmod(0)
    with pytest.raises(DataError, match="b cannot be listed"):
        list_folder(tmp_path)


def test_image_names_and_notes_of_a_folder(tmp_path):
    image = Image.new("RGB", (16, 16), "red")
    for name in ("a.jfif", "b.tga", "c.gif"):
        image.save(tmp_path / name, "JPEG" if name == "a.jfif" else None)
    (tmp_path / "linked").symlink_to(tmp_path, target_is_directory=True)
    touch(tmp_path, "x.cr2")
    source = open_images(str(tmp_path))
    found = scan_images(source)
    assert list(found.positions) == ["a.jfif", "b.tga", "c.gif"]
    assert found.sizes == dict.fromkeys(range(3), (16, 16)) and not found.errors
    assert len(source.notes) == 2


def test_a_folder_of_other_formats_is_refused_with_advice(tmp_path):
    touch(tmp_path, "a.heic", "b.dng")
    with pytest.raises(
        DataError, match=r"holds no image file.*PNG, JPEG, .*2 files \(a.heic, b.dng\).*pillow-heif.*rawpy"
    ):
        open_images(str(tmp_path))
