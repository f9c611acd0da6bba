"""Tests of `flax-vae`: choice of the command, exit statuses, messages."""

import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from flax_vae.cli import main as cli
from flax_vae.convert.errors import ConversionError, FileError
from flax_vae.errors import DataError, UserError

ENCODE = "flax_vae.cli.encode"


def command(monkeypatch, main):
    monkeypatch.setitem(sys.modules, ENCODE, SimpleNamespace(main=main))


def test_a_command_receives_its_arguments(monkeypatch):
    seen = []
    command(monkeypatch, lambda args: seen.append(args) or 7)
    assert cli.main(["encode", "photos", "--help"]) == 7
    monkeypatch.setattr(sys, "argv", ["flax-vae", "encode", "here"])
    assert cli.main() == 7
    assert seen == [["photos", "--help"], ["here"]]


@pytest.mark.parametrize(
    "error",
    [
        UserError("one\nsentence"),
        DataError("one sentence"),
        ConversionError("one  sentence"),
        FileError("one sentence"),
        PermissionError("one sentence"),
    ],
)
def test_user_errors_of_commands_are_one_line(error, monkeypatch, capsys):
    def fail(args):
        raise error

    command(monkeypatch, fail)
    assert cli.main(["encode"]) == 1
    assert capsys.readouterr() == ("", "flax-vae encode: one sentence\n")


def test_programming_errors_propagate(monkeypatch):
    command(monkeypatch, lambda args: {}["nothing"])
    with pytest.raises(KeyError):
        cli.main(["encode"])


def test_an_interrupt_prints_no_traceback(monkeypatch, capsys):
    def stop(args):
        raise KeyboardInterrupt

    command(monkeypatch, stop)
    assert cli.main(["encode"]) == 130
    assert capsys.readouterr().err == "flax-vae encode: interrupted\n"


@pytest.mark.parametrize(
    ("signum", "word"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "stopped by SIGTERM"),
        (signal.SIGUSR1, "stopped by SIGUSR1"),  # as SLURM's --signal=USR1@120 sends it
    ],
)
def test_a_signal_ends_the_command_in_one_line(signum, word, tmp_path):
    code = f"""
import hashlib, sys, types
from flax_vae.__main__ import main
from flax_vae.convert.console.interrupts import advise

def work(args):
    from flax_vae.convert.files.whole_file import atomic_file
    advise("flax-vae encode", "the same command goes on")
    with atomic_file({str(tmp_path / "a.png")!r}):
        print("begun", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)  # minutes in C, as a compiler

sys.modules[{ENCODE!r}] = types.SimpleNamespace(main=work)
sys.argv = ["flax-vae", "encode"]
sys.exit(main())
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    assert [path.name for path in tmp_path.iterdir()] == [".a.png.partial"]
    process.send_signal(signum)
    _, error = process.communicate(timeout=20)
    assert error.decode() == f"flax-vae encode: {word}; the same command goes on\n"
    assert process.returncode == 128 + signum
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seconds", [0.02, 0.3, 0.8])
@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("flax_vae", ["flax-vae", "encode", "absent", "latents", "--model", "absent"]),
        ("flax_vae.convert", ["flax-vae-convert", "absent", "there", "--to", "flux"]),
        ("flax_vae.train", ["flax-vae-train", "--dry-run", "--workdir", "absent"]),
        ("flax_vae.train", ["flax-vae-train", "eval", "absent"]),
    ],
)
def test_a_signal_during_imports_prints_no_traceback(package, words, seconds, tmp_path):
    imports = f"import sys; from {package}.__main__ import main; sys.argv = {words}"
    code = f"{imports}; print('begun', flush=True); sys.exit(main())"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, cwd=tmp_path)
    assert process.stdout.readline() == b"begun\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert b"Traceback" not in error and error.count(b"\n") <= 1
    assert process.returncode in (0, 1, 130, -signal.SIGINT)  # it may have ended already, or be ending


def test_a_closed_pipe_is_not_an_error():
    code = (
        "import sys, types\n"
        "from flax_vae.__main__ import main\n"
        f"sys.modules[{ENCODE!r}] = types.SimpleNamespace(main=lambda args: print('x' * 1_000_000) or 0)\n"
        "sys.argv[1:] = ['encode']\n"
        "sys.exit(main())"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(1) == b"x"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 1


def test_without_a_command_the_usage_is_printed(capsys):
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == cli.USAGE
    assert all(f"\n  {name} " in cli.USAGE for name in ("encode", "decode", "reconstruct"))
    assert cli.main(["enocde"]) == 2
    assert capsys.readouterr().err == (
        "flax-vae: unknown command 'enocde'; did you mean 'encode'? expected one of encode, decode, reconstruct\n"
    )
