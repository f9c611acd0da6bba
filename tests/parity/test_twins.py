"""The files of `torch_ref` and `flax_vae` that have one name differ by the idioms of the frameworks only."""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

import flax_vae
import torch_ref

ROOTS = [Path(package.__file__).parent for package in (torch_ref, flax_vae)]
TWINS = sorted(
    {path.stem for path in ROOTS[0].glob("*.py")} & {path.stem for path in ROOTS[1].glob("*.py")} - {"__init__"}
)

MOST_LINES = {"coders": 120, "layers": 110}  # in one file and not in the other

# Names that only one framework needs.
TORCH_ONLY = {"to_tensor"}
FLAX_ONLY = {
    *("full_attention", "example_inputs", "init_params", "to_jax"),
    *("leaky_relu", "unbiased", "BatchNorm.forward"),  # whose definitions differ from torch.nn's
    *("AutoEncoder.numerics", "make_model"),  # how a model is computed is not a part of PyTorch's
}
# First lines of docstrings that differ, because of what they describe.
TOLD_APART = {
    "from_pretrained",  # returns parameters beside the model
    "Posterior.sample",  # takes a key instead of a generator
    "attention",  # has other paths than the full matrix
}


def files_of(name: str) -> list[Path]:
    return [root / f"{name}.py" for root in ROOTS]


def definitions(path: Path) -> dict[str, str]:
    """Public functions, classes and methods in order, with the first lines of their docstrings."""
    found = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                name = {"__call__": "forward"}.get(node.name, node.name)
                if not name.startswith("_") and name != "setup":
                    found[prefix + name] = (ast.get_docstring(node) or "").partition("\n")[0]
                    if isinstance(node, ast.ClassDef):
                        visit(node.body, f"{name}.")

    visit(ast.parse(path.read_text("utf-8")).body, "")
    return found


def test_every_torch_file_of_the_model_has_a_twin():
    assert {"attention", "autoencoder", "coders", "discriminator", "gaussian", "latents", "layers", "loading"} <= {
        *TWINS
    }


@pytest.mark.skipif(shutil.which("diff") is None, reason="diff is not installed")
@pytest.mark.parametrize("name", MOST_LINES)
def test_few_lines_differ(name):
    done = subprocess.run(["diff", *files_of(name)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith(("<", ">"))]) <= MOST_LINES[name]


@pytest.mark.parametrize("name", TWINS)
def test_definitions_have_one_order_and_one_description(name):
    theirs, ours = map(definitions, files_of(name))
    theirs = {name: text for name, text in theirs.items() if name not in TORCH_ONLY}
    ours = {name: text for name, text in ours.items() if name not in FLAX_ONLY}
    assert [*theirs] == [*ours]
    assert {n: t for n, t in theirs.items() if n not in TOLD_APART} == {
        n: t for n, t in ours.items() if n not in TOLD_APART
    }
