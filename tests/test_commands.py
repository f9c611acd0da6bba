"""What the three commands have in common."""

import importlib
import re
import subprocess
import sys

import pytest

import flax_vae
from flax_vae.convert import PRESETS

COMMANDS = {"flax-vae": "flax_vae", "flax-vae-convert": "flax_vae.convert", "flax-vae-train": "flax_vae.train"}


@pytest.mark.parametrize("prog", COMMANDS)
def test_version(prog, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", COMMANDS[prog], "--version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{prog} {flax_vae.__version__}\n", "")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        *(("flax_vae.cli.main", [command]) for command in ("encode", "decode", "reconstruct")),
        *(("flax_vae.convert.cli.main", words) for words in ([], ["verify"], ["table"])),
        *(("flax_vae.train.cli.main", words) for words in ([], ["plan"], ["eval"])),
    ],
)
def test_help_lists_the_presets(module, words, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main([*words, "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    option = text[text.rindex("--preset") :].partition("(")[0].replace("- ", "-")
    assert [name for name in PRESETS if not re.search(rf"\b{name}\b", option)] == []
