"""What a file of settings means, and every way in which it can mean nothing."""

import json
import math

import pytest

from flax_vae.train.cli.settings_file import merge, read_settings
from flax_vae.train.config.recipes import recipe
from flax_vae.train.config.yaml_text import format_yaml, parse_yaml
from flax_vae.train.errors import TrainError

# Where YAML 1.1 says something else: a text, a text, an eight, false, a number of minutes, a date.
VALUES = {
    "1e-6": 1e-6,
    "-1.5E+3": -1500.0,
    "010": 10,
    "no": "no",
    "12:30": "12:30",
    "2020-01-01": "2020-01-01",
    "100_000": 100_000,
    ".5": 0.5,
    ".inf": math.inf,
    "true": True,
    "null": None,
    "": None,
    "'1'": "1",
    "[1, 2]": [1, 2],
}


@pytest.mark.parametrize("text", VALUES)
def test_values_are_those_of_yaml_1_2(text):
    value = parse_yaml(text)
    assert value == VALUES[text]
    assert type(value) is type(VALUES[text])


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json"])
def test_a_whole_configuration_survives_a_file(tmp_path, suffix):
    fields = recipe("kl-f16").to_dict()
    path = tmp_path / f"run.{suffix}"
    path.write_text(json.dumps(fields) if suffix == "json" else format_yaml(fields))
    assert read_settings(path) == json.loads(json.dumps(fields))


BAD_FILES = {
    "seed: 1\nseed: 2": 'line 2: found duplicate key "seed"',
    "loss:\n  kl_weight: 1\n  kl_weight: 2": 'line 3: found duplicate key "kl_weight"',
    "loss:\n\tkl_weight: 1": r"line 2: .*'\\t'.*; indent with spaces",
    "loss: [1": "line 1: expected",
    "": "it is empty",
    "# nothing": "it is empty",
    "- seed": "it holds a list, names and values were expected",
    "seed": "it holds a str",
    "seed: 1\n---\nseed: 2": "another document",
    "seed: !!python/object/apply:os.getpid []": r"line 1: tags \(!name\) are not read",
    "? {a: 1}\n: 2": "line 1: found unhashable key",
    "? [1]\n: 2": r"unknown setting '\(1,\)'",
    "1: 2": "unknown setting '1'",
    "[" * 3000: "line 1: nested more than 30 levels deep",
    "seed: \0": "unacceptable character",
    "seed: " + "9" * 5000: "5000 digits",
    "data: {folder: [2020-01-01, 1e-6]}": r"data.folder=\['2020-01-01', 1e-06\] must be text",
    "seed: 1\n" + "#" * 65536: "65,536|65536",
    "stepz: 3": "unknown setting 'stepz'; did you mean 'steps'?",
    "presett: tiny": "did you mean 'preset'?",
    "preset: 3": "preset=3 must be a name",
    "loss: {lpip_weight: 1}": "unknown setting 'loss.lpip_weight'; did you mean 'loss.lpips_weight'?",
    "lpips_weight: 1": "unknown setting 'lpips_weight'; did you mean 'loss.lpips_weight'?",
    "optim: {steps: 1}": "did you mean 'steps'?",
    "loss: 3": "loss=3 must be names and values",
    "loss:": "loss=None must be names and values",
    "loss: &again {kl_weight: *again}": "line 1: anchors and aliases .* are not read",
    "zero: off": "zero='off' must be true or false",
    "data: {folder: 3}": "data.folder=3 must be text; put it in quotes",
    "optim: {final_fraction: half}": "optim.final_fraction='half' must be a number",
    "seed: true": "seed=True must be a number",
}


@pytest.mark.parametrize("text", BAD_FILES, ids=lambda text: text[:40])
def test_a_bad_file_is_named_in_one_line(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(TrainError, match=BAD_FILES[text]) as caught:
        read_settings(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.toml", b"seed: 1", "must end in .yaml, .yml or .json"),
        ("run.yaml", b"\xff", "not UTF-8 text"),
        ("run.json", b'{"seed": 1, "seed": 2}', "names 'seed' more than once"),
        ("run.json", b"{", "Expecting"),
        ("missing/run.yaml", None, "does not exist"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TrainError, match=message) as caught:
        read_settings(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_merging_goes_into_parts_and_leaves_both_as_they_were():
    below, above = {"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}, "c": {"z": 5}}
    assert merge(below, above) == {"a": {"x": 1, "y": 4}, "b": 3, "c": {"z": 5}}
    assert (below, above) == ({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 4}, "c": {"z": 5}})
