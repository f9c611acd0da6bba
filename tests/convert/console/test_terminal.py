"""Names of files are other people's text: no command sends a terminal what it would obey."""

import io
import os
import pty
import subprocess
import sys

import pytest
from PIL import Image

import flax_vae.cli.main
import flax_vae.convert.cli.main
import flax_vae.train.cli.main
from flax_vae.convert.console.terminal import escaped_output, printable
from flax_vae.train.report.metrics_log import Reporter

HOSTILE = "a\x1b]0;owned\x07\x1b[31m\u202egnp\x9b2J\r[red]\udcff"
SAFE = "a\\x1b]0;owned\\x07\\x1b[31m\\u202egnp\\x9b2J\\x0d[red]\\xff"
# Whatever moves, colours, hides or reorders.  Spaces, which are joined in errors, are not of these.
FORBIDDEN = {chr(code) for code in [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F)]}


def test_everything_that_a_terminal_obeys_is_escaped_and_other_scripts_are_not():
    assert printable(HOSTILE) == SAFE
    assert printable("a\nb\tc") == "a\\x0ab\\x09c"
    assert printable("\U000e0041\ufeff\u2028\ud800") == "\\U000e0041\\ufeff\\u2028\\ud800"
    for name in ("größe", "夜の写真", "עברית", "نیم‌فاصله", "👩‍👩‍👧.png", "a b [1] {x}"):
        assert printable(name) == name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of that name with an image, a damaged one, a film and a note of such names in it."""
    monkeypatch.chdir(tmp_path)
    try:
        os.mkdir(HOSTILE)
    except OSError:
        pytest.skip("this file system takes no such names")
    Image.new("RGB", (16, 16)).save(f"{HOSTILE}/{HOSTILE}good.png")
    for ending in (".png", ".mp4", ".txt"):
        (tmp_path / HOSTILE / (HOSTILE + ending)).touch()
    return HOSTILE


CALLS = {
    "convert": (flax_vae.convert.cli.main.main, ["{}", "dst", "--to", "flux"]),
    "convert to": (flax_vae.convert.cli.main.main, ["nowhere", "{}", "--to", "flux"]),
    "inspect": (flax_vae.convert.cli.main.main, ["inspect", "{}"]),
    "encode": (flax_vae.cli.main.main, ["encode", "{}", "dst", "--model", "{}"]),
    "decode": (flax_vae.cli.main.main, ["decode", "{}", "dst", "--model", "{}"]),
    "reconstruct": (flax_vae.cli.main.main, ["reconstruct", "{}/{}.png", "--model", "{}"]),
    "train": (flax_vae.train.cli.main.main, ["--data", "{}", "--workdir", "run", "--steps", "1"]),
    "train from": (flax_vae.train.cli.main.main, ["--start-from", "{}", "--workdir", "run"]),
    "train in": (flax_vae.train.cli.main.main, ["--workdir", "{}", "--steps", "1"]),
    "eval": (flax_vae.train.cli.main.main, ["eval", "{}", "--data", "{}"]),
    "plan": (flax_vae.train.cli.main.main, ["plan", "--preset", "{}"]),
    "no command": (flax_vae.cli.main.main, ["{}"]),
}


@pytest.mark.parametrize("what", CALLS)
def test_no_message_of_any_command_holds_what_a_terminal_obeys(what, folder, capfd):
    main, words = CALLS[what]
    try:
        assert main([word.replace("{}", folder) for word in words]) != 0
    except SystemExit as ended:  # misuse
        assert ended.code
    told = "".join(capfd.readouterr())
    assert not FORBIDDEN & set(told)
    if what != "convert to":
        assert "a\\x1b" in told


def test_notes_on_a_folder_are_escaped(folder):
    from flax_vae.images.sources.folder import list_folder

    notes = " ".join(list_folder(folder_path(folder)).notes)
    assert SAFE in notes and not FORBIDDEN & set(notes)


def folder_path(folder):
    from pathlib import Path

    return Path(folder)


def test_progress_writes_around_it(monkeypatch):
    """A bar needs to move the cursor; a line above it is text, and no markup."""
    raw = io.StringIO()
    monkeypatch.setattr(sys, "stdout", raw)
    monkeypatch.setattr(sys, "stderr", raw)
    monkeypatch.setattr(raw, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with escaped_output():
        print(HOSTILE)
        assert raw.getvalue().endswith(f"{SAFE}\n")
        with Reporter(0, 2) as reporter:
            reporter.line(f"{HOSTILE} [bold]")
    assert (sys.stdout, sys.stderr) == (raw, raw)
    drawn = raw.getvalue()
    assert "\x1b[" in drawn  # the bar
    assert SAFE + " [bold]" in drawn.replace("\n", "") and "\x1b]" not in drawn and "\x1b[31m\u202e" not in drawn


def test_help_is_in_colour_on_a_terminal():
    leader, follower = pty.openpty()
    code = "import sys; from flax_vae.convert.cli.main import main; main(['inspect', '--help'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=follower, stderr=follower, env=os.environ | {"TERM": "xterm"}
    ):
        os.close(follower)
        told = b""
        try:
            while part := os.read(leader, 65536):
                told += part
        except OSError:  # the other side is closed
            pass
    os.close(leader)
    assert b"\x1b[" in told and b"\\x1b" not in told


@pytest.mark.parametrize("package", ["flax_vae", "flax_vae.convert", "flax_vae.train"])
def test_a_reader_that_has_seen_enough_is_no_error(package, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        command = [sys.executable, "-m", package, "--help"]
        done = subprocess.run(command, cwd=tmp_path, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
