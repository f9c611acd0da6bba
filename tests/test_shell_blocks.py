"""Every shell block of the README and the site runs as it stands there, in a folder with the files that it names.

Blocks of tutorials are run by `tests/test_tutorials.py`, but for those with output of a terminal.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flax_vae.convert.weights import hub
from tests import shell
from tests.tutorials import cells, masked

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in [ROOT / "README.md", *ROOT.glob(".github/*.md"), *sorted(ROOT.glob("docs/**/*.md"))]
}
# A block, and the output that may follow it.
BLOCK = re.compile(r"^ *```(\S*)[^\n]*\n(.*?)^ *```\n(?:\n```\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
# What commands leave behind, besides what later ones on the page read.
WRITTEN = {
    "README.md": "runs/tiny/export/model.safetensors flux1-vae/diffusion_pytorch_model.safetensors latents/index.json",
    "docs/guides/convert.md": "vae.safetensors A.md chelsea.reconstruction.png vae/config.json",
    "docs/guides/distillation.md": "small-decoder/config.json full_encoder_small_decoder.safetensors",
    "docs/guides/encode-folders.md": "chelsea.reconstruction.png latents/statistics.json pictures/chelsea.png",
    "docs/guides/evaluation.md": "runs/tiny/report.html runs/tiny-perceptual/export taef2.png",
    "docs/guides/finetuning.md": "runs/sd-decoder-finetune-16gb/export/model.safetensors",
    "docs/guides/regularisers.md": "runs/tiny-eq/metrics.jsonl",
    "docs/guides/training.md": "runs/tiny/samples runs/tiny/export/config.json",
}


def shell_blocks(page):
    """The shell blocks of a page with the output that it shows; of tutorials only those with output of a terminal."""
    for language, code, output in BLOCK.findall(PAGES[page].read_text("utf-8")):
        if language == "console":
            lines = code.splitlines(keepends=True)
            yield "".join(line[2:] for line in lines if line.startswith("$ ")), ""
        elif language == "bash" and not page.startswith("docs/tutorials/"):
            yield code, output


def folder_of(name, path, **changes):
    import jax
    import jax.numpy as jnp

    from flax_vae import Numerics, init_params, save_pretrained
    from flax_vae.convert.architecture import preset
    from flax_vae.loading import make_model

    model = make_model(replace(preset(name), **changes), Numerics(dtype=jnp.float32))
    save_pretrained(path, model, init_params(model, jax.random.key(0)))


def tensors(preset, layout):
    """Tensors of a published size, of the same thousand small numbers again and again."""
    import ml_dtypes

    from flax_vae import PRESETS
    from flax_vae.convert.table import expand

    rows, numbers = expand(PRESETS[preset], layout), np.random.default_rng(0).normal(0, 0.02, 1009)
    return {row.theirs: np.resize(numbers.astype(ml_dtypes.bfloat16), row.op.torch_shape(row.shape)) for row in rows}


def image(path, size=(96, 64)):
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).save(path)


def images(path):
    for name in ("a", "bb"):
        image(path / f"{name}.png")


def shipped(path):
    path.mkdir(parents=True)
    image(path / "chelsea.jpg")
    image(path / "cup.jpg")


def flux1_file(path):
    from safetensors.numpy import save_file

    save_file(tensors("flux1", "flux"), path)


def stable_diffusion_checkpoint(path):
    import torch

    first = {f"first_stage_model.{name}": torch.zeros(array.shape) for name, array in tensors("sd1", "ldm").items()}
    torch.save(
        {"state_dict": {name: tensor.half() for name, tensor in first.items()} | {"model.out": torch.zeros(4)}}, path
    )


def tiny_pair(path):
    from flax_vae.convert.weights import load_weights, save_weights

    folder_of("taef2", path.parent / "whole")
    save_weights(path, load_weights(path.parent / "whole"), "taesd")


def pytorch_run(path):
    import torch

    from flax_vae import PRESETS
    from torch_ref import AutoEncoder

    model = AutoEncoder(replace(PRESETS["tiny"], **NARROW))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 3, 32, 32)).mean().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


def converted(layout):
    """What makes a narrow model of Stable Diffusion in a layout."""

    def make(path):
        from flax_vae.convert.weights import load_weights, save_weights

        folder_of("sd1", path.parent / "sd1", **NARROW)
        save_weights(path, load_weights(path.parent / "sd1"), layout)

    return make


NARROW = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1}
# What makes a file or a folder of a name that pages use.
STAND_INS = {
    "FOLDER": images,
    "photographs": images,
    "train/photographs": shipped,
    "chelsea.jpg": image,
    "PICTURE": lambda path: (image(path.with_suffix(".png")), path.with_suffix(".png").rename(path)),
    "runs/tiny/export": lambda path: folder_of("tiny", path),
    "A": lambda path: folder_of("tiny", path),
    "B": lambda path: folder_of("tiny", path),
    "taef2": tiny_pair,
    "ae.safetensors": flux1_file,
    "sd-v1.ckpt": stable_diffusion_checkpoint,
    "run.pt": pytorch_run,
}
MODELS = {
    "docs/guides/distillation.md": lambda path: folder_of("flux2", path, **NARROW),
    "docs/guides/finetuning.md": lambda path: folder_of("sd1", path, **NARROW),
}


HUB = {
    "pcuenq/sd-vae-ft-mse-flax": converted("diffusers-flax"),
    "CompVis/stable-diffusion-v1-4": lambda path: converted("diffusers-flax")(path / "vae"),
    "black-forest-labs/FLUX.1-schnell": lambda path: flux1_file(path / "ae.safetensors"),
    "stabilityai/sd-vae-ft-mse": converted("diffusers"),
    "ORG/MODEL": lambda path: folder_of("flux1", path, **NARROW),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, and a hub of models that are made when they are downloaded."""

    def fetch(name, files, commit=None):
        folder = tmp_path / "hub" / name.repository
        if not folder.exists():
            folder.mkdir(parents=True)
            HUB[name.repository](folder)
        return folder

    def list_files(name, snapshot):
        return [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()], True

    monkeypatch.setattr(hub, "_fetch", fetch)
    monkeypatch.setattr(hub, "_list_files", list_files)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def costs(page):
    torch = {"docs/guides/convert.md", "docs/guides/distillation.md", "docs/tutorials/from-torch-and-back.md"}
    return [pytest.mark.slow, *([pytest.mark.torch] if page in torch else [])]


WITH_COMMANDS = [page for page in PAGES if any(shell_blocks(page))]


@pytest.mark.parametrize("page", PAGES)
def test_no_command_is_left_out(page):
    """Each block of commands has a language that tests run, and each program is run or has a reason."""
    text = PAGES[page].read_text("utf-8")
    for language, code, _ in BLOCK.findall(text):
        assert language in {"python", "bash", "console", "text", "diff", "latex", ""}, language
        if language not in ("bash", "console"):
            assert not re.search(r"^(\$ |\.venv/bin/|(flax-vae[\w-]*|pip|python3?) .*--)", code, re.MULTILINE), code
    if page.startswith("docs/tutorials/"):
        assert text.count("```bash") == sum(cell.language == "bash" for cell in cells(text))
    for code, _ in shell_blocks(page):
        for words in shell.commands(code):
            program = Path(words[0]).name
            assert program in {*shell.NOT_RUN, *shell.PROGRAMS, "python"}, words


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_written_as_they_run_after_the_first(page):
    """From the environment that the first one makes; the first page of the tutorials says that it is activated."""
    if page.startswith("docs/tutorials/"):
        return
    for code, _ in shell_blocks(page):
        for words in shell.commands(code):
            if Path(words[0]).name in {*shell.PROGRAMS, "python", "pip", "pytest"}:
                assert words[0].startswith((".venv/bin/", "~/venv/bin/")), words


def test_the_tutorials_say_that_the_environment_is_activated():
    assert "source .venv/bin/activate" in PAGES["docs/tutorials/index.md"].read_text("utf-8")


@pytest.mark.parametrize("page", [pytest.param(page, marks=costs(page), id=page) for page in WITH_COMMANDS])
def test_shell_blocks_run(page, place, capsys):
    found = [(list(shell.commands(code)), output) for code, output in shell_blocks(page)]
    words = {shell.OUTSIDE.sub("", word) for commands, _ in found for command in commands for word in command[1:]}
    for name, make in {**STAND_INS, "MODEL": MODELS.get(page)}.items():
        if name == "train/photographs" or any(f"{word}/".startswith(f"{name}/") for word in words):
            make(Path(name))
    said = ""
    for commands, output in found:
        for command in commands:
            shell.run(command)
        out = capsys.readouterr().out
        said += out
        printed = {" ".join(line.split()) for line in masked(out).splitlines()}
        missing = [line for line in masked(output).splitlines() if line not in printed | {"", "..."}]
        assert not missing, printed
    if page == "README.md":
        assert "2 images" in said  # are encoded
    for path in WRITTEN.get(page, "").split():
        assert Path(path).exists(), path
