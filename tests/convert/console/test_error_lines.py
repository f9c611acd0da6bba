"""Every command prints the errors that a user can fix as one line, and a defect with its traceback."""

import importlib
import signal
import subprocess
import sys

import pytest

from flax_vae.convert.console import advise, guard
from flax_vae.convert.errors import ArgumentError, ConversionError, FileError
from flax_vae.errors import DataError, NotFiniteError
from flax_vae.train.errors import RunError

# Name of the command, its module, arguments, and the function that does the work.
COMMANDS = [
    ("flax-vae encode", "flax_vae.cli.main", ["encode", "a", "b", "--model", "c"], "flax_vae.cli.encode._run"),
    ("flax-vae decode", "flax_vae.cli.main", ["decode", "a", "b", "--model", "c"], "flax_vae.cli.decode._run"),
    (
        "flax-vae reconstruct",
        "flax_vae.cli.main",
        ["reconstruct", "a", "--model", "b"],
        "flax_vae.cli.reconstruct._open",
    ),
    (
        "flax-vae-convert",
        "flax_vae.convert.cli.main",
        ["a", "b", "--to", "flux"],
        "flax_vae.convert.cli.main.Convert.run",
    ),
    (
        "flax-vae-convert table",
        "flax_vae.convert.cli.main",
        ["table", "--preset", "tiny"],
        "flax_vae.convert.cli.main.Table.run",
    ),
    ("flax-vae-train", "flax_vae.train.cli.main", [], "flax_vae.train.cli.main._work"),
    ("flax-vae-train eval", "flax_vae.train.cli.main", ["eval", "a"], "flax_vae.train.cli.evaluate._run"),
    ("flax-vae-train plan", "flax_vae.train.cli.main", ["plan"], "flax_vae.train.cli.plan._run"),
]


def raising(error):
    def work(*_):
        raise error

    return work


@pytest.mark.parametrize(("prog", "module", "args", "work"), COMMANDS, ids=[prog for prog, *_ in COMMANDS])
def test_errors_of_every_command(prog, module, args, work, monkeypatch, capsys):
    main = importlib.import_module(module).main
    for error in (ArgumentError("x=1 must be 2"), FileError("x=1 must be 2"), OSError("x=1 must be 2")):
        monkeypatch.setattr(work, raising(error))
        assert main(args) == 1
        assert capsys.readouterr() == ("", f"{prog}: x=1 must be 2\n")
    for defect in (ValueError("broken"), TypeError("broken"), KeyError("broken")):
        monkeypatch.setattr(work, raising(defect))
        with pytest.raises(type(defect), match="broken"):
            main(args)
        assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error",
    [ConversionError("one\n  line"), DataError("one line"), NotFiniteError("one line"), RunError("one line\n")],
)
def test_one_line(error, capsys):
    assert guard("flax-vae x", raising(error)) == 1
    assert capsys.readouterr().err == "flax-vae x: one line\n"


def test_lines_of_a_message_are_kept_and_names_in_it_escaped(capsys):
    error = ConversionError("a\nb.pt lacks:\n  x")
    assert guard("c", raising(error), words=["--to", "a\nb.pt"]) == 1
    assert capsys.readouterr().err == "c: a\\x0ab.pt lacks:\n  x\n"


def test_the_status_is_that_of_the_work():
    assert guard("c", lambda: 3) == 3


def test_interrupts_name_what_the_command_does_next(capsys):
    try:
        advise("c", "the same command goes on")
        assert guard("c", raising(KeyboardInterrupt())) == 128 + signal.SIGINT
        advise("c", "")
        assert guard("c", raising(KeyboardInterrupt())) == 128 + signal.SIGINT
    finally:
        advise("", "")
    assert capsys.readouterr().err == "c: interrupted; the same command goes on\nc: interrupted\n"


def test_a_missing_package_is_named_and_a_broken_import_is_a_defect(capsys, monkeypatch):
    assert guard("c", raising(ImportError("no", name="datasets"))) == 1
    assert capsys.readouterr().err.startswith("c: this needs datasets (no): ")
    with pytest.raises(ImportError, match="cannot import"):
        guard("c", raising(ImportError("cannot import name", name="flax_vae.layers")))


def test_a_closed_pipe_is_left_to_the_caller():
    with pytest.raises(BrokenPipeError):
        guard("c", raising(BrokenPipeError(32, "Broken pipe")))


def test_a_defect_ends_a_process_with_a_traceback(tmp_path):
    code = (
        "import sys\n"
        "import flax_vae.convert.cli.main as main\n"
        "def run(self): raise ValueError('broken')\n"
        "main.Table.run = run\n"
        "sys.exit(main.main(['table', '--preset', 'tiny']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("ValueError: broken\n")
