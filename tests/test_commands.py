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


HELPS = [
    *(("flax_vae.cli.main", [command]) for command in ("encode", "decode", "reconstruct")),
    *(("flax_vae.convert.cli.main", words) for words in ([], ["inspect"], ["verify"], ["table"])),
    *(("flax_vae.train.cli.main", words) for words in ([], ["plan"], ["eval"], ["compare"])),
]


def help_of(module, words, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main([*words, "--help"])
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(("module", "words"), [row for row in HELPS if row[1] not in (["inspect"], ["compare"])])
def test_help_lists_the_presets(module, words, capsys):
    text = help_of(module, words, capsys)
    option = text[text.rindex("--preset") :].partition("(")[0].replace("- ", "-")
    assert [name for name in PRESETS if not re.search(rf"\b{name}\b", option)] == []


@pytest.mark.parametrize(("module", "words"), HELPS)
def test_help_has_one_wording_of_defaults(module, words, capsys):
    text = help_of(module, words, capsys)
    assert "(default: None)" not in text and "{None" not in text and "(optional)" not in text


@pytest.mark.parametrize(("module", "words"), HELPS)
def test_every_option_is_in_a_named_section_and_has_a_default(module, words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")  # one section below the other
    with pytest.raises(SystemExit):
        importlib.import_module(module).main([*words, "--help"])
    text = re.sub("-{9,}|[─│╭╮╰╯]", " ", capsys.readouterr().out)
    _, *parts = re.split(r"^ *((?:\w+ )?options|positional arguments) *$", text, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert re.findall(r"--[\w-]+", sections.pop("options")) == ["--help"]
    sections.pop("positional arguments", None)
    assert sections
    for text in sections.values():
        _, *options = re.split(r"^ {,3}(?=--)", text, flags=re.MULTILINE)
        for option in options:
            told = " ".join(option.split())
            assert re.search(r"\((required|(repeatable; )?default: [^()]+)\)$", told), told


MISTAKES = [
    (
        "flax_vae.convert.cli.main",
        ["table", "--preset", "tinny"],
        "--preset tinny is not a choice; did you mean 'tiny'?",
    ),
    ("flax_vae.convert.cli.main", ["a", "b", "--to", "fluks"], "--to fluks is not a choice; did you mean 'flux'?"),
    ("flax_vae.convert.cli.main", ["a", "b", "--to", "flux", "--preset", "sd11"], "did you mean 'sd1'?"),
    (
        "flax_vae.convert.cli.main",
        ["a", "b", "--to", "flux", "--dtype", "half"],
        "expected one of bfloat16, float16, float32; see",
    ),
    ("flax_vae.convert.cli.main", ["a", "b"], "missing --to"),
    ("flax_vae.cli.main", ["encode", "a", "b", "--model", "m", "--dtyp", "x"], "unknown option --dtyp; did you mean"),
    ("flax_vae.cli.main", ["encode", "a", "b", "--model", "m", "--store", "means"], "did you mean 'mean'?"),
    ("flax_vae.cli.main", ["decode", "a", "b"], "missing --model"),
    ("flax_vae.cli.main", ["reconstruct", "a", "--model", "m", "--preset", "flux9"], "--preset flux9 is not a choice"),
    ("flax_vae.cli.main", ["encode", "a", "b", "--model", "m", "--preset", "sd11"], "did you mean 'sd1'?"),
    ("flax_vae.train.cli.main", ["eval", "a", "--lpips", "vggg"], "--lpips vggg is not a choice; did you mean 'vgg'?"),
]


@pytest.mark.parametrize(("module", "words", "message"), MISTAKES)
def test_a_mistake_ends_in_one_line_that_suggests_a_name(module, words, message, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main(words)
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert message in err and err.count("\n") == 1 and "None" not in err
