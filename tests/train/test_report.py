import json

from train.report import Metrics, Reporter, read_metrics


def test_what_lies_beyond_the_checkpoint_is_cut_off_and_so_is_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "loss": 1.0}\n{"step": 10, "loss": 0.5}\n{"step": 15, "lo')
    metrics = Metrics(path, resumed_step=5)
    metrics.write(10, {"loss": 0.25})
    assert read_metrics(path) == [{"step": 5, "loss": 1.0}, {"step": 10, "loss": 0.25}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_numbers_that_are_not_finite_are_left_out_of_the_line(tmp_path):
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


def test_plain_lines_where_there_is_no_terminal(capsys):
    with Reporter(0, 100) as reporter:
        reporter.advance(1)
        reporter.scores(10, SCORES)
        reporter.line("[a] line")
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("step  10/100  loss 0.1235  kl 3  about ")
    assert out.splitlines()[1:] == ["[a] line"]
    assert "\x1b" not in out


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Reporter(0, 100) as reporter:
        reporter.scores(10, SCORES)
        reporter.line("[a] line")
    out = capsys.readouterr().out
    assert "10/100" in out
    assert "[a] line" in out
