"""What the three commands have in common."""

import subprocess
import sys

import pytest

import flax_vae

COMMANDS = {"flax-vae": "flax_vae", "flax-vae-convert": "flax_vae.convert", "flax-vae-train": "flax_vae.train"}


@pytest.mark.parametrize("prog", COMMANDS)
def test_version(prog, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", COMMANDS[prog], "--version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{prog} {flax_vae.__version__}\n", "")
