"""The commands in the guide to pods and in the launch files are valid."""

import re
import shlex
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from flax_vae import train
from flax_vae.train.cli.flags import Flags, parse_run_flags
from flax_vae.train.cli.plan import PlanFlags
from flax_vae.train.config.recipes import recipe
from flax_vae.train.config.yaml_text import parse_yaml

HERE = Path(str(resources.files(train)))
PAGE = Path(__file__).parents[3] / "docs" / "guides" / "tpu-pods.md"
JOBSET, SLURM = HERE / "launch" / "jobset.yaml", HERE / "launch" / "slurm.sh"


def commands_in(text):
    """Returns the arguments of every `flax-vae-train`, including those on continued lines."""
    joined = re.sub(r"\\?\n\s*(?=--)", " ", text)
    found = re.findall(r"flax-vae-train ((?:plan )?--[^\n\"`|&;]*)", joined)
    return [shlex.split(line, comments=True) for line in found]


@pytest.mark.parametrize(("file", "count"), [(PAGE, 2), (JOBSET, 1), (SLURM, 1)], ids=["page", "jobset", "slurm"])
def test_every_documented_command_parses(file, count):
    commands = commands_in(file.read_text(encoding="utf-8"))
    assert len(commands) == count
    for words in commands:
        planned = words[0] == "plan"
        flags = parse_run_flags(PlanFlags if planned else Flags, prog="x", args=words[1:] if planned else words)
        recipe(flags.run.preset)
        if planned:
            assert flags.estimate.topology
        else:
            assert flags.distribution.distributed and flags.run.workdir and flags.settings["data"]["folder"]


def test_jobset_starts_one_process_per_host():
    (job,) = parse_yaml(JOBSET.read_text(encoding="utf-8"))["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    height, width = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    (container,) = pod["containers"]
    assert spec["parallelism"] == spec["completions"]
    assert spec["completions"] * container["resources"]["limits"]["google.com/tpu"] == height * width
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    (words,) = commands_in(JOBSET.read_text(encoding="utf-8"))
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert all(words[words.index(flag) + 1].startswith(mounts["bucket"] + "/") for flag in ("--data", "--workdir"))


def test_slurm_script_requeues_only_after_a_stop(tmp_path):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    said = {}
    for status in (0, 1, 143):
        for name, text in {"srun": f"exit {status}", "scontrol": 'echo "scontrol $*"'}.items():
            (tmp_path / name).write_text(f"#!{bash}\n{text}\n")
            (tmp_path / name).chmod(0o755)
        done = subprocess.run(
            [bash, SLURM], env={"PATH": str(tmp_path), "SLURM_JOB_ID": "17"}, capture_output=True, text=True
        )
        assert done.returncode == status
        said[status] = done.stdout.strip()
    assert said == {0: "", 1: "", 143: "scontrol requeue 17"}


def test_an_address_without_folders_is_refused_as_workdir(capsys):
    from flax_vae.train.cli.main import main

    assert main(["--workdir", "ftp://host/run"]) == 1
    assert "ftp://host/run cannot be used as a folder; expected a path, gs:// or s3://" in capsys.readouterr().err
