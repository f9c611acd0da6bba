"""Tests of the comparison of processes before the first step and at each checkpoint."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.train.devices.members import CONFIGS, FOLDERS
from tests.train.runs import ENVIRONMENT, ROOT, free_port

WHOLE = "the processes differ: process 1: {}. Give all of them the same settings, data, initial weights and versions"


@pytest.fixture(scope="module")
def messages(folder, tmp_path_factory):
    """Returns the error messages of process 0 and process 1 for each case."""
    data = tmp_path_factory.mktemp("data")
    for name in ("same", *FOLDERS):
        shutil.copytree(folder, data / name)
    pixels = np.random.default_rng(3).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data / "other photographs" / "b.jpg")
    (data / "fewer photographs" / "b.jpg").unlink()
    damaged = data / "damaged photograph" / "b.jpg"
    damaged.write_bytes(damaged.read_bytes()[:60])

    address = f"127.0.0.1:{free_port()}"
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.devices.members", address, str(index), str(data)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | ENVIRONMENT,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    lines = [[json.loads(line) for line in out.splitlines() if line.startswith('["')] for out, _ in outputs]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [name for name, _ in lines[0]] == [name for name, _ in lines[1]]
    return {name: (first, second) for (name, first), (_, second) in zip(*lines, strict=True)}


@pytest.mark.parametrize("case", ["the same", "another path", "the same state", "long values"])
def test_equal_processes_continue(messages, case):
    assert messages[case] == ("", "")


@pytest.mark.parametrize(
    ("case", "difference"),
    [
        ("learning rate", "optim.learning_rate is 0.002, process 0 has 0.0001"),
        ("save_every", "save_every is 3, process 0 has 200"),
        ("parallel", "parallel is mesh, process 0 has pmap"),
        ("two settings", "steps is 7, process 0 has 100000; process 1: seed is 1, process 0 has 0"),
        ("version", "version of optax is 0.9, process 0 has 1.0"),
    ],
)
def test_a_different_setting_or_version_is_named_in_both_processes(messages, case, difference):
    assert messages[case] == (WHOLE.format(difference),) * 2
    assert case == "version" or case in CONFIGS


@pytest.mark.parametrize(
    ("case", "beginning"),
    [
        ("other photographs", "image b.jpg is "),
        ("fewer photographs", "image b.jpg is none, process 0 has "),
        ("damaged photograph", "image b.jpg is 60 bytes, "),
        ("constants", "constant lpips is "),
        ("initial weights", "initial params/kernel is "),
    ],
)
def test_different_data_or_weights_are_named_in_both_processes(messages, case, beginning):
    first, second = messages[case]
    assert first == second
    assert first.startswith(WHOLE.partition("{")[0] + beginning)
    assert first.count("process 1:") == 1


def test_a_failure_in_one_process_ends_both(messages):
    assert messages["failure in one"] == ("process 1 failed: b.jpg is damaged", "b.jpg is damaged")
    assert messages["failure in the first"] == ("locked", "process 0 failed: locked")
    assert messages["failure in both"] == ("of 0", "of 1")
    assert messages["defect in one"] == ("process 1 failed: ZeroDivisionError('x')", "")  # it raised its own error


def test_a_state_that_differs_is_not_saved(messages):
    first, second = messages["state"]
    assert first == second
    assert first.startswith(
        "the state differs between processes after step 40, so no checkpoint of it is written: the processes differ: "
        "process 1: state params/kernel is "
    )


def test_values_are_in_the_order_of_the_processes(messages):
    assert messages["values"] == ([{"from": 0}, {"from": 1}],) * 2


def test_waiting_for_a_missing_process_times_out(messages):
    assert messages["alone"][0].startswith("not all processes arrived within 1 s to compare their state (")
