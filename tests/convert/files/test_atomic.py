"""Files and folders that are replaced: by the whole new one at once, with their permissions, and without leftovers."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flax_vae.convert.files import atomic
from flax_vae.convert.files.atomic import beside, exchange, partial_of, restore, shortened, unfinished
from flax_vae.convert.files.whole_file import atomic_file
from flax_vae.convert.files.whole_folder import atomic_folder

NAMES = ("a", "b")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def killed(code):
    """Runs Python that ends as with `kill -9`."""
    subprocess.run(
        [sys.executable, "-c", f"import os, signal\n{code}\nos.kill(os.getpid(), signal.SIGKILL)"], check=False
    )


def test_what_a_killed_process_left_is_used_up_by_the_next_start(tmp_path):
    file, folder = tmp_path / "notes.txt", tmp_path / "model"
    killed(
        "from flax_vae.convert.files import atomic_file, atomic_folder\n"
        f"one = atomic_file({str(file)!r}); one.__enter__().write_text('half a line, longer than the next')\n"
        f"two = atomic_folder({str(folder)!r}, ('a', 'b')); (two.__enter__() / 'b').touch()"
    )
    assert names_in(tmp_path) == [".model.partial", ".notes.txt.partial"]
    with atomic_file(file) as temporary:
        temporary.open("ab").close()
    with atomic_folder(folder, NAMES) as fresh:
        (fresh / "a").touch()
    assert names_in(tmp_path) == ["model", "notes.txt"] and names_in(folder) == ["a"]
    assert file.read_text() == ""


def test_a_disk_that_is_full_names_the_file_that_was_to_be_written(tmp_path):
    path = tmp_path / "notes.txt"
    with pytest.raises(OSError, match="notes.txt could not be written: No space left") as caught, atomic_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write raises it, without a name
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError) as missing, atomic_file(path):
        (tmp_path / "another").read_bytes()  # another file has its own name
    assert missing.value.filename == str(tmp_path / "another")


def test_two_writers_at_once_do_not_disturb_each_other(tmp_path):
    path, inside, go_on = tmp_path / "notes.txt", threading.Event(), threading.Event()

    def first():
        with atomic_file(path) as temporary:
            temporary.write_text("first")
            inside.set()
            go_on.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    with atomic_file(path) as temporary:
        temporary.write_text("second")
    assert path.read_text() == "second"
    go_on.set()
    thread.join()
    assert path.read_text() == "first" and names_in(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("at_once", [True, False])
def test_what_replaces_keeps_the_permissions(at_once, tmp_path, monkeypatch):
    if not at_once:
        monkeypatch.setattr(atomic, "_exchanged", lambda one, other: False)
    file, folder = tmp_path / "notes.txt", tmp_path / "model"
    file.touch(mode=0o640)
    folder.mkdir(mode=0o710)
    (folder / "a").touch(mode=0o604)
    with atomic_file(file, force=True) as temporary:
        temporary.write_text("new")
    with atomic_folder(folder, NAMES, force=True) as fresh:
        (fresh / "a").write_text("new")
        (fresh / "b").touch()
    assert (mode(file), mode(folder), mode(folder / "a")) == (0o640, 0o710, 0o604)
    assert (folder / "a").read_text() == "new" and names_in(tmp_path) == ["model", "notes.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="the call is Linux's")
def test_folders_change_places_at_once(tmp_path):
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert atomic._exchanged(tmp_path / "a", tmp_path / "b")
    assert names_in(tmp_path / "a") == ["b"] and names_in(tmp_path / "b") == ["a"]


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    killed(
        "import flax_vae.convert.files.atomic as atomic; from pathlib import Path\n"
        "atomic._exchanged = lambda one, other: False\n"
        "rename, count = Path.rename, []\n"
        "def once(self, to):\n"
        "    if count: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    count.append(1); return rename(self, to)\n"
        "Path.rename = once\n"
        f"atomic.exchange(Path({str(tmp_path / 'a')!r}), Path({str(tmp_path / 'b')!r}))"
    )
    assert names_in(tmp_path) == [".b.replaced", "a"]
    restore(tmp_path / "b")
    assert names_in(tmp_path) == ["a", "b"] and names_in(tmp_path / "b") == ["b"]
    exchange(tmp_path / "a", tmp_path / "b")
    assert names_in(tmp_path / "b") == ["a"]


def test_long_names_are_cut_and_stay_apart(tmp_path):
    long = [tmp_path / name for name in ("x" * 255, "x" * 254 + "y", "夜" * 83 + "b.png", "夜" * 83 + "a.png")]
    hidden = [beside(path, "partial").name for path in long]
    assert len({*hidden}) == 4 and all(len(os.fsencode(name)) <= 255 for name in hidden)
    assert all(partial_of(name) for name in hidden) and partial_of(hidden[2]).endswith(".png")
    assert partial_of(".a.png.0123abcd.partial") == partial_of(".a.png.partial") == "a.png"
    assert partial_of("a.png") is None
    assert shortened("short.png") == "short.png"
    for path in long:
        with atomic_file(path) as temporary:
            temporary.write_text("whole")
        assert path.read_text() == "whole"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="has no /proc")
@pytest.mark.parametrize("folder", [False, True])
def test_a_place_where_nothing_can_be_made_is_an_error_and_no_endless_loop(folder):
    with (
        pytest.raises(OSError, match="/proc/absent could not be written"),
        unfinished(Path("/proc/absent"), folder=folder),
    ):
        pass
