"""The one display of progress: a bar on a terminal, lines elsewhere."""

import io

import pytest

from flax_vae.convert.console import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch):
    times = [0.0]
    monkeypatch.setattr("flax_vae.convert.console.progress.time.monotonic", lambda: times[0])
    return times


def test_a_line_every_few_seconds_without_a_terminal(now, capsys):
    with Progress(2000, 1000) as progress:
        for now[0] in (7.5, 15.0, 16.0, 40.0):
            progress.add(75)
        progress.line("done")
    assert progress.done == 1300
    assert capsys.readouterr().err.splitlines() == [
        "1,150 of 2,000 images, 10 images/s", "1,300 of 2,000 images, 7.5 images/s", "done",
    ]  # fmt: skip


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with Progress(100, unit="tensors", stream=stream) as progress:
        progress.add(40, "loss 0.1")
        progress.add(2)
        progress.line("[a] line")
    drawn = stream.getvalue()
    assert "42/100" in drawn and "tensors/s  loss 0.1" in drawn and "[a] line" in drawn
    assert drawn.endswith("\x1b[2K")  # the bar is wiped away


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet(stream):
    shown = stream()
    with Progress(100, stream=shown, seconds=0, quiet=True) as progress:
        progress.add(10)
        progress.line("a line")
    assert shown.getvalue() == ""
