"""The README and the pages of the site: their Python runs as it stands there, and their commands have those flags.

The Python runs in a folder where the first command has left its model; `tests/test_shell_blocks.py` runs the
commands, `tests/test_tutorials.py` the tutorials.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import re
from pathlib import Path

import pytest

from tests import shell

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [README, *sorted(ROOT.glob("docs/**/*.md"))]}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page].read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


EXAMPLES = {
    page: found for page in PAGES if not page.startswith("docs/tutorials/") and (found := blocks(page, "python"))
}
# Last lines of what these pages print, in seconds each; the others take longer.
PRINTED = {
    "README.md": r"\(1, 32, 48, 4\) \(1, 256, 384, 3\)",
    "docs/coming-from-diffusers.md": r"\(1, 8, 12, 4\) True",
    "docs/explain/padding.md": r"shapes \(1, 16, 16, 16\) and \(1, 16, 16, 16\), difference 1\.\d\d of the mean",
    "docs/guides/arrays.md": r"\(2, 16, 12, 16\) \(2, 64, 48, 3\)",
    "docs/guides/convert.md": "True",
    "docs/guides/encode-folders.md": "2 4",
}
MODELS = "docs/guides/models.md"
PRESET_ROWS = re.findall(
    r"^\| (.+?) \| (.+?) \| (.+?) \|$",
    PAGES[MODELS].read_text("utf-8").partition("| your model |")[2].partition("\n\n")[0],
    re.MULTILINE,
)


@pytest.fixture
def after_training(tmp_path, monkeypatch):
    """`runs/tiny/export`, with fresh weights in place of trained ones; `latents` that they made of two photographs.

    A folder of the name of a model on the hub, which is then not asked, holds a narrow model of the same kind.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from PIL import Image

    from flax_vae import PRESETS, AutoEncoder, encode_folder, encoding_of, init_params, save_pretrained

    model = AutoEncoder(PRESETS["tiny"], dtype=jnp.float32)
    params = init_params(model, jax.random.key(0))
    save_pretrained(tmp_path / "runs" / "tiny" / "export", model, params)
    narrow = AutoEncoder(dataclasses.replace(PRESETS["sd1"], ch=32, num_res_blocks=1))
    (tmp_path / "stabilityai").mkdir()
    save_pretrained(tmp_path / "stabilityai" / "sd-vae-ft-mse", narrow, init_params(narrow, jax.random.key(0)))
    (tmp_path / "photographs").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "photographs" / f"{name}.png")
    encoding = encoding_of(model, params, store="mean", dtype="float32")
    encode_folder(tmp_path / "photographs", tmp_path / "latents", model, params, encoding)
    monkeypatch.chdir(tmp_path)


def test_the_readme_is_short():
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= 130 and len(text.split()) <= 800
    assert all(len(line.splitlines()) <= 12 for line in EXAMPLES["README.md"])


def test_there_are_examples():
    assert len(EXAMPLES) >= 8 and PRINTED.keys() <= EXAMPLES.keys()


def marks_of(page):
    code = "".join(EXAMPLES[page])
    torch = [pytest.mark.torch] if re.search(r"^\s*(import|from) torch", code, re.MULTILINE) else []
    return torch if page in PRINTED else [*torch, pytest.mark.slow]


@pytest.mark.parametrize("page", [pytest.param(page, marks=marks_of(page), id=page) for page in EXAMPLES])
def test_page_runs(page, after_training, capsys):
    names: dict = {}
    for number, example in enumerate(EXAMPLES[page]):
        exec(compile(example, f"{page}, example {number}", "exec"), names)
    # Each ends by printing what it computed.
    printed = capsys.readouterr().out.splitlines()[-1]
    if page in PRINTED:
        assert re.fullmatch(PRINTED[page], printed), printed
    numbers = re.findall(r"\d+(?:\.\d+)?|True|nan|inf", printed)
    assert numbers and not {"nan", "inf"} & set(numbers)


SUBCOMMANDS = {
    "flax-vae": ["encode", "decode", "reconstruct"],
    "flax-vae-convert": ["inspect", "verify", "table"],
    "flax-vae-train": ["eval", "compare", "plan", "recipes"],
}


@functools.cache
def options_of(prog, subcommand):
    """Returns the options that the help of a command names."""
    words = [subcommand] if subcommand in SUBCOMMANDS[prog] else []
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        importlib.import_module(shell.PROGRAMS[prog]).main([*words, "--help"])
    return set(re.findall(r"--[\w.-]+", printed.getvalue()))


def commands_in(page):
    """Returns our commands in a page's shell blocks and in its inline code, as words."""
    for code in blocks(page, "bash"):
        for program, *words in shell.commands(code):
            if Path(program).name in shell.PROGRAMS:
                yield Path(program).name, words
    prose = re.sub(r"^```.*?^```", "", PAGES[page].read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", prose):
        match = re.match(r"\s*(?:\S*bin/)?(flax-vae(?:-convert|-train)?) (.*)", " ".join(code.split()))
        if match:
            yield match[1], match[2].partition(" #")[0].replace('"', " ").split()


@pytest.mark.parametrize("page", PAGES)
def test_commands_have_the_options_that_pages_name(page, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    for prog, words in commands_in(page):
        subcommand = words[0] if words and words[0] in SUBCOMMANDS[prog] else ""
        given = {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help", "--version"}
        assert sorted(given - options_of(prog, subcommand)) == [], (prog, words)


def test_presets_have_the_scale_and_shift_of_the_table():
    from flax_vae.convert.architecture import ALL_PRESETS, TINY_PRESETS

    named = []
    for _, presets, scaling in PRESET_ROWS:
        for name in re.findall(r"`([\w.-]+)`", presets):
            if name == "config.json":  # whose statistics the presets do not hold
                assert scaling == "per channel"
                continue
            named.append(name)
            if name in TINY_PRESETS:
                assert scaling == "none"
                continue
            params = ALL_PRESETS[name]
            shift = "per channel" if params.latent_mean else f"{params.shift_factor:g}"
            told = "running statistics" if params.latent_norm == "batch_norm" else f"{params.scale_factor:g}, {shift}"
            assert scaling == told, name
    assert sorted(named) == sorted(ALL_PRESETS)
    models = [name for models, *_ in PRESET_ROWS for name in models.split(", ")]
    assert len(models) == len(set(models)) > 40


@pytest.mark.parametrize(
    ("model", "preset"), [("Z-Image", "flux1"), ("Kolors", "sdxl"), ("SiT", "sd1"), ("CogView3-Plus", "cogview4")]
)
def test_models_are_named_beside_their_preset(model, preset):
    assert [presets for models, presets, _ in PRESET_ROWS if model in models.split(", ")] == [f"`{preset}`"]
    rows = re.findall(r"^\| (.+?) \| (`.+?`) \|$", README.read_text("utf-8"), re.MULTILINE)
    assert all(presets == f"`{preset}`" for models, presets in rows if model in re.split(", | and ", models))
