"""The README's Python runs as it stands there, in a folder where the first command has left its model."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
NAMES = ["train", "import", "convert"]


@pytest.fixture
def after_training(tmp_path, monkeypatch):
    """`runs/tiny/export`, with fresh weights in place of trained ones."""
    import jax

    from flax_vae import PRESETS, AutoEncoder, init_params, save_pretrained

    model = AutoEncoder(PRESETS["tiny"])
    save_pretrained(tmp_path / "runs" / "tiny" / "export", model, init_params(model, jax.random.key(0)))
    monkeypatch.chdir(tmp_path)


def test_there_is_an_example_for_each_kind_of_user():
    assert len(EXAMPLES) == len(NAMES)
    for example in EXAMPLES:
        assert len(example.strip().splitlines()) <= 12


@pytest.mark.parametrize("index", [pytest.param(0, marks=pytest.mark.torch), 1, 2], ids=NAMES)
def test_example_runs(index, after_training, capsys):
    exec(compile(EXAMPLES[index], f"README.md, example {NAMES[index]!r}", "exec"), {})
    printed = capsys.readouterr().out.splitlines()[-1]
    expected = {
        0: r"\d+",
        1: r"\(2, 16, 12, \d+\) \(2, 64, 48, 3\)",
        2: "True",
    }
    assert re.fullmatch(expected[index], printed), printed
