"""The command: what it refuses, what it prints, and that no way of dying changes the weights."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from flax_vae.convert import PRESETS, expand, save_folder
from flax_vae.train.cli import main as cli
from flax_vae.train.cli.flags import Flags, parse_run_flags
from flax_vae.train.cli.resolve import resolve
from flax_vae.train.config.recipes import recipe
from flax_vae.train.config.schema import TrainConfig
from flax_vae.train.errors import TrainError
from flax_vae.train.loop import Outcome
from flax_vae.train.run.directory import RunDirectory
from tests.train.conftest import SMALL
from tests.train.runs import ENVIRONMENT

COMMAND = [sys.executable, "-m", "flax_vae.train.cli.main"]


def test_help_answers_without_loading_a_framework():
    code = (
        "import sys; from flax_vae.train.cli import main as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'jax', 'flax', 'orbax', 'PIL', 'ruamel', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for flag in ("--preset", "--workdir", "--steps", "--seed", "--parallel", "--data", "--batch-size"):
        assert flag in done.stdout


def test_eval_is_a_command_of_its_own(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["eval", "--help"])
    assert end.value.code == 0
    assert "usage: flax-vae-train eval" in capsys.readouterr().out
    assert cli.main(["eval", "nowhere", "--data", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith("flax-vae-train eval: ")


@pytest.mark.parametrize("flag", ["--workdir", "--data"])
def test_what_the_system_refuses_ends_in_one_line(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--dry-run", flag, "x" * 300]) == 1
    said = capsys.readouterr().err
    assert said.startswith("flax-vae-train: ") and "File name too long" in said and said.count("\n") == 1


def test_what_a_dry_run_prints_is_a_file_of_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--dry-run", "--loss.kl-weight", "0.5", "--seed", "3"]) == 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    tiny = recipe("tiny")
    settings = parse_run_flags(Flags, prog="x", args=["--config", "run.yaml"])
    assert resolve(settings, tmp_path / "run") == replace(tiny, seed=3, loss=replace(tiny.loss, kl_weight=0.5))


@pytest.mark.parametrize(
    ("args", "members"),
    [
        ([], None),
        (["--distributed"], (None, None, None)),
        (["--coordinator", "a:1", "--processes", "2", "--process", "1"], ("a:1", 2, 1)),
    ],
)
def test_processes_join_before_they_train(tmp_path, monkeypatch, capsys, args, members):
    calls = []

    def train(config, workdir, *, accept_changed_data, take_over):
        calls.append((config, workdir, accept_changed_data))
        return Outcome(None, 400, {})  # as every process but the first gets it

    monkeypatch.setattr("flax_vae.train.devices.processes.join_processes", lambda *given: calls.append(given))
    monkeypatch.setattr("flax_vae.train.loop.train", train)
    assert cli.main(["--workdir", str(tmp_path), *args, *(["--accept-changed-data"] if args else [])]) == 0
    joined = [] if members is None else [members]
    assert calls == [*joined, (recipe("tiny"), tmp_path, bool(args))]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TrainError("the disk is full"), "flax-vae-train: the disk is full\n"),
        (
            jax.errors.JaxRuntimeError("INTERNAL: Connection closed by peer\nmore" + "!" * 1000),
            "flax-vae-train: process 0 cannot go on: another process ended, whose message says why, or a device failed "
            "(INTERNAL: Connection closed by peer); the same command goes on from the last checkpoint\n",
        ),
        (ZeroDivisionError("a defect"), "ZeroDivisionError: a defect\n"),
        (KeyboardInterrupt(), "flax-vae-train: interrupted; the same command goes on from the last checkpoint\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_of_several_processes_that_fails_does_not_wait_for_the_others(tmp_path, monkeypatch, capsys, error, said):
    def train(*args, **options):
        raise error

    left = []
    monkeypatch.setattr("flax_vae.train.devices.processes.join_processes", lambda *given: None)
    monkeypatch.setattr("flax_vae.train.devices.processes.leave", left.append)
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("flax_vae.train.loop.train", train)
    status = cli.main(["--workdir", str(tmp_path), "--distributed"])
    assert left == [status] == [130 if isinstance(error, KeyboardInterrupt) else 1]
    assert capsys.readouterr().err.endswith(said)


def empty(path):
    path.mkdir()


def corrupt(path):
    path.mkdir()
    Image.new("RGB", (64, 64)).save(path / "a.png")
    (path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")


def not_finite(path):
    weights = {row.theirs: np.full(row.torch_shape, np.nan, np.float32) for row in expand(SMALL)}
    save_folder(path, SMALL, weights)


def other_architecture(path):
    RunDirectory(path).begin(TrainConfig(model=PRESETS["flux1"]))


def strangers(path):
    path.mkdir()
    (path / "thesis.tex").touch()


def damaged_config(path):
    path.mkdir()
    (path / "config.json").write_text("{")


def settings(path):
    path.mkdir()
    (path / "run.yaml").write_text("loss:\n  kl_wight: 1\n")


def unknown_field(path):
    RunDirectory(path).begin(recipe("tiny"))
    fields = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**fields, "stepz": 1}))


# What was asked for (X is the path that the second column prepared), and what is said about it.
REFUSED = [
    ("--preset tinny", None, "unknown preset 'tinny'; did you mean 'tiny'?"),
    ("--preset flux1-finetune", None, "--start-from PATH"),
    ("--steps 0", None, "steps=0 must be a whole number of at least 1"),
    ("--batch-size 0", None, "batch_size=0"),
    ("--batch-size 3", None, "batch_size=3 cannot be shared evenly by 2 devices"),
    ("--devices-per-image 2", None, "devices_per_image=2 needs parallel='mesh'"),
    (
        "--dry-run --parallel mesh --devices-per-image 4",
        None,
        "devices_per_image=4 must divide 2, the number of devices of a process",
    ),
    ("--crop-size 30", None, "crop_size=30 must be a multiple of 4"),
    ("--crop-size 512", None, "smaller than crop_size=512"),
    ("--learning-rate -1", None, "learning_rate=-1.0 must be greater than 0"),
    ("--data X", None, "X does not exist; give a folder"),
    ("--data X", empty, "holds no image file"),
    ("--data X", corrupt, "b.png"),
    ("--config X/run.yaml", settings, "run.yaml: unknown setting 'loss.kl_wight'; did you mean 'loss.kl_weight'?"),
    ("--config X/none.yaml", settings, "none.yaml does not exist"),
    ("--start-from X", empty, "start_from='X' cannot be loaded"),
    ("--start-from X", not_finite, "start_from='X' holds values that are NaN or infinite"),
    ("--dry-run --start-from X", not_finite, "start_from='X' holds values that are NaN or infinite"),
    ("--dry-run --data X", empty, "holds no image file"),
    ("--dry-run --batch-size 3", None, "batch_size=3 cannot be shared evenly by 2 devices"),
    ("--dry-run --workdir X --preset tiny", other_architecture, "another architecture"),
    ("--processes 2", None, "coordinator and process must be given too"),
    ("--coordinator here --processes 2 --process 1", None, "coordinator='here' must be HOST:PORT"),
    ("--coordinator here:1 --processes 2 --process 2", None, "process=2 of processes=2 must be from 0 to 1"),
    ("--workdir X --preset tiny", other_architecture, "another architecture"),
    ("--workdir X", strangers, "is not empty (thesis.tex)"),
    ("--workdir X", lambda path: path.touch(), "is a file"),
    ("--workdir X", damaged_config, "does not describe a training run"),
    ("--workdir X", unknown_field, "did you mean 'steps'"),
]


@pytest.mark.parametrize(("args", "prepare", "message"), REFUSED, ids=[f"{row[0]}: {row[2]}" for row in REFUSED])
def test_bad_input_is_one_line_and_exit_status_1(tmp_path, monkeypatch, capsys, args, prepare, message):
    monkeypatch.chdir(tmp_path)
    if prepare is not None:
        prepare(tmp_path / "X")
    before = sorted(path for path in tmp_path.rglob("*"))
    assert cli.main(args.split()) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("flax-vae-train: ")
    assert message in captured.err
    assert sorted(path for path in tmp_path.rglob("*")) == before  # nothing lost, nothing left behind


@pytest.mark.parametrize("args", [["--stepz", "3"], ["--steps", "many"], ["--parallel", "gpu"]])
def test_wrong_flags_exit_with_status_2(capsys, args):
    with pytest.raises(SystemExit) as end:
        cli.main(args)
    assert end.value.code == 2
    assert args[0].strip("-")[:4] in capsys.readouterr().err


def run(workdir, *args):
    command = [*COMMAND, "--workdir", str(workdir), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | ENVIRONMENT)


@pytest.fixture(scope="module")
def uninterrupted(small, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    RunDirectory(workdir).begin(replace(small, log_every=1, save_every=3))
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_the_command_trains_and_says_how_good_the_model_is(uninterrupted):
    workdir, done = uninterrupted
    last = done.stdout.splitlines()[-1]
    assert last.startswith("held-out photograph: PSNR ")
    assert f"model in {workdir / 'export'}" in last
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "step"), [(signal.SIGKILL, 7), (signal.SIGINT, 4)])
def test_dying_does_not_change_the_weights(uninterrupted, small, tmp_path, signum, step):
    RunDirectory(tmp_path).begin(replace(small, log_every=1, save_every=3))
    # A save waits for the one before: when step 7 is reported, the checkpoint of step 3 is complete.
    command, environment = [*COMMAND, "--workdir", str(tmp_path)], os.environ | ENVIRONMENT
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.startswith(f"step {step:>2}/10"):
                process.send_signal(signum)
                break
        rest = process.stdout.read()
    assert process.returncode == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert ("the same command goes on from there" in rest) == (signum != signal.SIGKILL)
    assert not (tmp_path / "export").exists()

    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed after step" in done.stdout
    name = "export/model.safetensors"
    assert (tmp_path / name).read_bytes() == (uninterrupted[0] / name).read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 11))
