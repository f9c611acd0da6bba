"""Tests of the lock against a second trainer."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from flax_vae.train.errors import RunError
from flax_vae.train.run.lock_file import LOCK, lock

HOLD = """
import sys, time
from pathlib import Path
from flax_vae.train.run.lock_file import lock
with lock(Path(sys.argv[1])) as problem:
    print(problem, flush=True)
    time.sleep(60)
"""


def test_a_second_trainer_is_refused_with_the_owner_s_name(tmp_path):
    run = tmp_path / "made" / "run"
    with lock(run) as problem:
        assert problem is None
        with pytest.raises(RunError, match=f"process {os.getpid()} on .*wait for its end") as refused, lock(run):
            pytest.fail("two trainers in one directory")
        assert str(run / LOCK) in str(refused.value)
        assert json.loads((run / LOCK).read_text())["pid"] == os.getpid()
    assert list(run.iterdir()) == []
    with lock(run):
        pass


def test_an_error_releases_the_lock(tmp_path):
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    with lock(tmp_path) as problem:
        assert problem is None


def test_a_killed_trainer_releases_the_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "None\n"
    with pytest.raises(RunError, match=f"process {holder.pid} on"), lock(tmp_path):
        pytest.fail("two trainers in one directory")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert (tmp_path / LOCK).exists()  # a killed process cannot remove it
    with lock(tmp_path) as problem:
        assert problem is None


def test_a_lock_file_removed_by_its_owner_is_not_used(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def removed_meanwhile(descriptor, operation):
        calls.append(operation)
        flock(descriptor, operation)
        if len(calls) == 1:
            (tmp_path / LOCK).unlink()

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with lock(tmp_path):
        assert len(calls) == 2
        with pytest.raises(RunError, match="is held by"), lock(tmp_path):
            pytest.fail("two trainers in one directory")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, number):
    def refuse(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with lock(tmp_path) as problem:
        assert "cannot be locked on this file system" in str(problem)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written.*choose another workdir"), lock(tmp_path / "file"):
        pytest.fail("a file was locked as a directory")
