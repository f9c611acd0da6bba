"""The Python of README and guides runs as it stands there, in a folder where the first command has left its model."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
GUIDES = sorted(README.parent.glob("docs/guides/*.md"))


def examples_of(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


EXAMPLES = examples_of(README)
PRESET_ROWS = re.findall(
    r"^\| (.+?) \| (.+?) \| (.+?) \|$",
    README.read_text("utf-8").partition("| your model |")[2].partition("\n\n")[0],
    re.MULTILINE,
)
NAMES = ["train", "import", "convert", "latents"]


@pytest.fixture
def after_training(tmp_path, monkeypatch):
    """`runs/tiny/export`, with fresh weights in place of trained ones; and `latents` that they made of two images."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from PIL import Image

    from flax_vae import PRESETS, AutoEncoder, init_params, save_pretrained
    from flax_vae.folders.encode import encode_folder, encoding_of

    model = AutoEncoder(PRESETS["tiny"], dtype=jnp.float32)
    params = init_params(model, jax.random.key(0))
    save_pretrained(tmp_path / "runs" / "tiny" / "export", model, params)
    (tmp_path / "photographs").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "photographs" / f"{name}.png")
    encoding = encoding_of(model, params, store="mean", dtype="float32")
    encode_folder(tmp_path / "photographs", tmp_path / "latents", model, params, encoding)
    monkeypatch.chdir(tmp_path)


def test_there_is_an_example_for_each_kind_of_user():
    assert len(EXAMPLES) == len(NAMES)
    for example in EXAMPLES:
        assert len(example.strip().splitlines()) <= 12


@pytest.mark.parametrize("index", [pytest.param(0, marks=pytest.mark.torch), 1, 2, 3], ids=NAMES)
def test_example_runs(index, after_training, capsys):
    exec(compile(EXAMPLES[index], f"README.md, example {NAMES[index]!r}", "exec"), {})
    printed = capsys.readouterr().out.splitlines()[-1]
    expected = {
        0: r"\d+",
        1: r"\(2, 16, 12, \d+\) \(2, 64, 48, 3\)",
        2: "True",
        3: "16 16",
    }
    assert re.fullmatch(expected[index], printed), printed


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_guide_runs(page, after_training, capsys):
    names: dict = {}
    for example in examples_of(page):
        exec(compile(example, page.name, "exec"), names)
    # Each ends by printing what it computed.
    numbers = re.findall(r"-?\d+\.\d+|nan|inf", capsys.readouterr().out.splitlines()[-1])
    assert numbers and not {"nan", "inf"} & set(numbers)


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
