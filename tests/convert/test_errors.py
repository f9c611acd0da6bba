"""The errors of all packages, and the parts of their messages."""

import pickle
from pathlib import Path

import pytest

from flax_vae.convert.architecture import preset
from flax_vae.convert.errors import (
    ArgumentError,
    ConversionError,
    FileError,
    FlaxVaeError,
    shorten,
    shorten_lines,
    shorten_sentences,
    suggest,
)
from flax_vae.convert.weights import read_config
from flax_vae.errors import DataError, NotFiniteError, UserError
from flax_vae.images.read import StorageError
from flax_vae.train.config import OptimConfig
from flax_vae.train.errors import RunError, TrainError

ERRORS = [
    *(ArgumentError, ConversionError, FileError, UserError, DataError, StorageError, NotFiniteError),
    *(TrainError, RunError),
]


@pytest.mark.parametrize("error", ERRORS)
def test_all_have_one_base(error):
    made = error("a is 1; expected 2", value=1, path="a.json", field="a")
    assert isinstance(made, FlaxVaeError) and str(made) == "a is 1; expected 2"
    again = pickle.loads(pickle.dumps(made))
    assert (type(again), str(again), again.value, again.path, again.field) == (error, str(made), 1, Path("a.json"), "a")
    assert (error("b").value, error("b").path, error("b").field) == (None, None, None)


def test_what_was_a_value_error_still_is():
    assert issubclass(ArgumentError, ValueError)
    assert issubclass(ConversionError, ValueError) and issubclass(FileError, ValueError)
    assert not issubclass(UserError, ValueError)


def test_fields_say_what_is_wrong(tmp_path):
    with pytest.raises(ArgumentError) as unknown:
        preset("tinny")
    assert (unknown.value.field, unknown.value.value) == ("preset", "tinny")
    with pytest.raises(ArgumentError) as negative:
        OptimConfig(weight_decay=-1.0)
    assert (negative.value.field, negative.value.value) == ("weight_decay", -1.0)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FileError) as damaged:
        read_config(tmp_path / "config.json")
    assert damaged.value.path == tmp_path / "config.json"


@pytest.mark.parametrize(
    ("name", "known", "listed", "hint"),
    [
        ("tinny", ["tiny", "flux1"], None, "did you mean 'tiny'?"),
        ("tinny", ["tiny", "flux1"], True, "did you mean 'tiny'? expected one of tiny, flux1"),
        ("sdxl", ["tiny", "flux1"], None, "expected one of tiny, flux1"),
        ("sdxl", ["tiny", "flux1"], False, ""),
        ("lpips_weight", ["loss.kl_weight", "loss.lpips_weight"], None, "did you mean 'loss.lpips_weight'?"),
        ("None", [None, "float32"], None, "expected one of float32"),
        (None, ["none", None], None, "did you mean 'none'?"),
    ],
)
def test_suggest(name, known, listed, hint):
    assert suggest(name, known, listed=listed) == hint


def test_suggest_several():
    known = ["encoder.conv_out", "decoder.conv_out", "decoder.conv_in", "decoder.up"]
    hint = "did you mean 'decoder.conv_out', 'encoder.conv_out' or 'decoder.conv_in'?"
    assert suggest("decoder.conv_ot", known, most=3) == hint
    assert suggest("decode.conv_out", known) == "did you mean 'decoder.conv_out'?"  # the nearer of the two


def test_shorten():
    assert shorten(["a", "b"]) == "a, b"
    assert shorten("abcdefg") == "a, b, c and 4 more"
    assert shorten("a" for _ in range(1003)) == "a, a, a and 1,000 more"
    assert shorten(["x" * 90]) == "x" * 77 + "..."
    assert shorten_sentences(["one thing", "another"], 1) == "one thing; and 1 more"
    assert shorten_sentences(["x" * 90, "another"]) == "x" * 90 + "; another"
    assert shorten_lines(["a", "b", "c"], 1) == ["a", "  and 2 more"]
