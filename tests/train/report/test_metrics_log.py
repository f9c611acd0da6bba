import json
import random
from collections import Counter
from types import SimpleNamespace

import pytest

from flax_vae.train.errors import RunError
from flax_vae.train.report.metrics_lines import read_lines, to_line
from flax_vae.train.report.metrics_log import Metrics, Reporter, read_metrics


def test_rows_after_the_checkpoint_and_an_unfinished_line_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "loss": 1.0}\n{"step": 10, "loss": 0.5}\n{"step": 15, "lo')
    metrics = Metrics(path, resumed_step=5)
    metrics.write(10, {"loss": 0.25})
    assert read_metrics(path) == [{"step": 5, "loss": 1.0}, {"step": 10, "loss": 0.25}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert all(json.loads(line) for line in path.read_text().splitlines())


ROWS = [{"step": step, "loss": 1.0 / step, "psnr": 20.0 + step} for step in (5, 10, 15)]
DAMAGE = {
    "a flipped bit in a number": lambda lines: [lines[0], lines[1].replace(b"0.1", b"0.3"), lines[2]],
    "a flipped bit in a name": lambda lines: [lines[0], lines[1].replace(b"loss", b"lors"), lines[2]],
    "a flipped bit in JSON": lambda lines: [lines[0], b"\x02" + lines[1][1:], lines[2]],
    "no UTF-8": lambda lines: [lines[0], lines[1].replace(b"l", b"\xec", 1), lines[2]],
    "no object": lambda lines: [lines[0], b"12", lines[1], lines[2]],
    "no step": lambda lines: [b'{"loss": 1}', *lines],
    "a step that is text": lambda lines: [b'{"step": "x"}', *lines],
    "a step that is none": lambda lines: [b'{"step": true}', b'{"step": -1}', b'{"step": 1.5}', *lines],
    "a number too large": lambda lines: [b'{"step": 1, "loss": 1' + b"0" * 400 + b"}", *lines],
    "deep nesting": lambda lines: [b"[" * 100_000, *lines],
    "an old row of a step": lambda lines: [b'{"step": 10, "loss": 3.0}', *lines],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_lines_are_set_aside_and_reported_once(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    lines = DAMAGE[damage]([to_line(row).rstrip().encode() for row in ROWS])
    path.write_bytes(b"\n".join(lines) + b"\n")
    assert all(row in ROWS for row in read_metrics(path))  # reading neither fails nor changes the file
    metrics = Metrics(path, resumed_step=10)
    kept = read_metrics(path)
    assert kept == [row for row in ROWS[:2] if row in kept]
    assert len(kept) >= 1
    aside = (tmp_path / "metrics.jsonl.damaged").read_bytes().splitlines()
    assert aside == [line for line in lines if line not in [to_line(row).rstrip().encode() for row in ROWS]]
    (problem,) = metrics.problems
    assert f"{len(aside)} of {len(lines)} lines were damaged" in problem
    metrics.write(15, ROWS[2])
    again = Metrics(path, resumed_step=15)
    assert again.problems == []
    assert read_metrics(path) == [*kept, ROWS[2]]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes().splitlines() == aside


def test_rows_are_sorted_and_zeros_of_a_power_failure_ignored(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [to_line(row).encode() for row in ROWS]
    path.write_bytes(lines[2] + lines[0] + bytes(4096) + lines[1] + bytes(4096))
    metrics = Metrics(path, resumed_step=15)
    assert (read_metrics(path), metrics.problems) == (ROWS, [])


def test_an_unfinished_line_of_an_earlier_step_is_set_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [to_line(row) for row in ROWS]
    path.write_text(lines[0] + lines[1][:30])
    metrics = Metrics(path, resumed_step=10)
    assert read_metrics(path) == ROWS[:1]
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == lines[1][:30] + "\n"
    assert len(metrics.problems) == 1


def test_a_last_line_without_newline_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(map(to_line, ROWS)).rstrip())
    assert Metrics(path, resumed_step=15).problems == []
    assert read_metrics(path) == ROWS


def test_a_folder_instead_of_the_file_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match="metrics.jsonl cannot be read .*; move it away"):
        Metrics(tmp_path / "metrics.jsonl", resumed_step=0)


def test_flipped_bits_never_change_a_value(tmp_path):
    path, rng = tmp_path / "metrics.jsonl", random.Random(0)
    whole = b"".join(to_line(row).encode() for row in ROWS)
    outcome = Counter()
    for _ in range(300):
        content = bytearray(whole)
        content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        lines = read_lines(path)
        numbers = [{name: row.get(name) for name in ("step", "loss", "psnr")} for row in lines.rows]
        if numbers == ROWS:
            outcome["without effect"] += 1
        elif (lines.damaged or lines.unfinished) and all(row in ROWS for row in numbers):
            outcome["found"] += 1
        else:
            outcome["silent"] += 1
    print(dict(outcome))
    assert outcome["silent"] == 0
    assert outcome["found"] > 200


def test_values_that_are_not_finite_are_left_out(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", resumed_step=0)
    metrics.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "skipped": 1})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "skipped": 1}]


def test_only_the_first_process_writes(tmp_path, capsys):
    Metrics(tmp_path / "metrics.jsonl", resumed_step=0, write=False).write(1, {"loss": 1.0})
    with Reporter(0, 100, quiet=True) as reporter:
        reporter.scores(10, SCORES)
        reporter.line("a line")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


SCORES = {"loss": 0.1234567, "kl": 3.0, "images_per_second": 5.0}


def test_plain_lines_without_a_terminal(capsys):
    with Reporter(0, 100) as reporter:
        reporter.advance(1)
        reporter.advance(10)
        reporter.scores(10, SCORES, 81.6)
        reporter.scores(11, SCORES)
        reporter.line("[a] line")
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "step  10/100  loss 0.1235  kl 3  about 82 s left", "step  11/100  loss 0.1235  kl 3", "[a] line",
    ]  # fmt: skip
    assert "\x1b" not in out


def test_the_rate_on_a_terminal_leaves_compilation_out(monkeypatch):
    now, shown = [0.0], []
    monkeypatch.setattr("flax_vae.convert.console.progress.time.monotonic", lambda: now[0])
    with Reporter(20, 100) as reporter:
        reporter._bar, reporter._task = SimpleNamespace(update=lambda task, text, **_: shown.append(text)), 0
        reporter._bar.stop = lambda: None
        for step, seconds in [(21, 60.0), (22, 2.0), (23, 2.0)]:
            now[0] += seconds
            reporter.advance(step)
    assert shown == ["steps, 0 steps/s  ", "steps, 0.5 steps/s  ", "steps, 0.5 steps/s  "]


def test_a_progress_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Reporter(0, 100) as reporter:
        reporter.scores(10, SCORES)
        reporter.line("[a] line")
    out = capsys.readouterr().out
    assert "10/100" in out
    assert "[a] line" in out
