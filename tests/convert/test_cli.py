import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert import LAYOUTS, PRESETS, expand
from convert.cli import main
from convert.files import read_tensors, write_tensors
from convert.folder import load_folder, save_folder

TINY = PRESETS["tiny"]


def random_weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {row.theirs: rng.standard_normal(row.torch_shape, np.float32) for row in expand(TINY, "flux")}


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes(), name


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    """A working directory that holds the same weights as a bare file and as a model folder."""
    monkeypatch.chdir(tmp_path)
    write_tensors("ae.safetensors", random_weights())
    save_folder("model", TINY, random_weights())
    return tmp_path


def refused(capsys, work: Path, *words: str) -> str:
    """Runs a command that must fail with one sentence and change nothing; returns the sentence."""
    before = everything_in(work)
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("flax-vae-convert: ") and "Traceback" not in err
    assert everything_in(work) == before
    return err


def misused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return " ".join(err.replace("│", " ").split())


def test_a_file_becomes_a_model_folder(work, capsys):
    assert main(["ae.safetensors", "new", "--to", "flux", "--preset", "tiny"]) == 0
    params, state_dict = load_folder("new")
    assert params == TINY
    assert_same(state_dict, random_weights())
    assert capsys.readouterr().out.startswith(f"new: {len(state_dict)} tensors, ")


@pytest.mark.parametrize("src", ["model", "model/model.safetensors"])
def test_a_model_folder_becomes_a_file(work, src):
    assert main([src, "new.safetensors", "--to", "flux"]) == 0
    assert_same(read_tensors("new.safetensors"), random_weights())


@pytest.mark.parametrize("dst", ["ae.safetensors", "model"])
def test_an_existing_output_is_kept_unless_forced(work, capsys, dst):
    write_tensors("other.safetensors", random_weights(1))
    command = ["other.safetensors", dst, "--to", "flux", "--preset", "tiny"]
    assert f"{dst} exists already; replace it with force=True (--force)" in refused(capsys, work, *command)
    assert main([*command, "--force"]) == 0
    assert_same(load_folder(dst)[1] if dst == "model" else read_tensors(dst), random_weights(1))


def test_a_source_can_replace_itself(work):
    assert main(["model", "model", "--to", "flux", "--force"]) == 0
    assert_same(load_folder("model")[1], random_weights())


def test_a_preset_that_contradicts_the_folder_is_refused(work, capsys):
    assert main(["model", "same", "--to", "flux", "--preset", "tiny"]) == 0
    capsys.readouterr()
    message = refused(capsys, work, "model", "new", "--to", "flux", "--preset", "flux1")
    assert "model is not of preset flux1: resolution is 64, not 256, ch is 32, not 128" in message
    assert "leave out --preset" in message


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(work, capsys):
    weights = random_weights()
    del weights["encoder.conv_in.bias"]
    weights["encoder.conv_in.bais"] = np.zeros(32, np.float32)
    weights["decoder.conv_out.weight"] = weights["decoder.conv_out.weight"].T
    write_tensors("bad.safetensors", weights)
    message = refused(capsys, work, "bad.safetensors", "new", "--to", "flux", "--preset", "tiny")
    for name in ("encoder.conv_in.bias", "encoder.conv_in.bais", "decoder.conv_out.weight"):
        assert name in message


def test_bad_sources_are_refused(work, capsys):
    Path("short.safetensors").write_bytes(Path("ae.safetensors").read_bytes()[:5000])
    Path("empty").mkdir()
    tail = ("new", "--to", "flux")
    assert "absent does not exist; give a model folder or" in refused(capsys, work, "absent", *tail)
    assert "add --preset (tiny, seed" in refused(capsys, work, "ae.safetensors", *tail)
    assert "empty holds no config.json" in refused(capsys, work, "empty", *tail)
    short = refused(capsys, work, "short.safetensors", *tail, "--preset", "tiny")
    assert "short.safetensors is not a complete safetensors file" in short


def test_bad_targets_are_refused(work, capsys):
    Path("file").write_text("precious")
    Path("model/notes.txt").write_text("precious")
    tail = ("--to", "flux", "--preset", "tiny", "--force")
    assert "file is a file; a model folder needs" in refused(capsys, work, "ae.safetensors", "file", *tail)
    assert "more than a model (notes.txt)" in refused(capsys, work, "ae.safetensors", "model", *tail)
    assert "file" in refused(capsys, work, "ae.safetensors", "file/below", *tail)


def test_a_misused_command_line_exits_with_2(capsys):
    assert "SRC" in misused(capsys)
    assert "invalid choice 'tinny'" in misused(capsys, "a", "b", "--to", "flux", "--preset", "tinny")
    assert "invalid choice 'fluxx'" in misused(capsys, "a", "b", "--to", "fluxx")
    assert "--forse" in misused(capsys, "a", "b", "--to", "flux", "--forse")
    assert "FILE" in misused(capsys, "inspect")
    assert "--preset" in misused(capsys, "table")


@pytest.mark.parametrize("file", ["ae.safetensors", "model"])
def test_inspect_lists_every_tensor(work, capsys, file):
    assert main(["inspect", file]) == 0
    heads, *lines, total = capsys.readouterr().out.splitlines()
    assert heads.split() == ["name", "shape", "dtype"]
    expected = {name: (str(array.shape), "float32") for name, array in random_weights().items()}
    found = {line.split()[0]: (line[line.index("(") : line.index(")") + 1], line.split()[-1]) for line in lines}
    assert found == expected
    numbers = sum(array.size for array in random_weights().values())
    assert total == f"{len(expected):,} tensors, {numbers:,} numbers, float32"


def test_inspect_counts_mixed_dtypes(work, capsys):
    arrays = {"a": np.zeros(2, np.float16), "b": np.zeros((), np.int64), "c": np.zeros((2, 2), np.float16)}
    write_tensors("mixed.safetensors", arrays)
    assert main(["inspect", "mixed.safetensors"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 tensors, 7 numbers, 2 x float16, 1 x int64"


def test_inspect_refuses_what_it_cannot_read(work, capsys):
    Path("notes.txt").write_text("no weights")
    assert "notes.txt is not a complete safetensors file" in refused(capsys, work, "inspect", "notes.txt")
    assert "absent does not exist" in refused(capsys, work, "inspect", "absent")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_table_shows_every_row(capsys, preset, layout):
    assert main(["table", "--preset", preset, "--layout", layout]) == 0
    _, *lines, total = capsys.readouterr().out.splitlines()
    rows = expand(PRESETS[preset], layout)
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        parts = [row.ours, *str(row.shape).split(), row.theirs, *str(row.torch_shape).split(), *row.op.name.split()]
        assert line.split() == parts
    assert total.startswith(f"{len(rows):,} tensors, ")


def test_table_counts_the_published_numbers(capsys):
    assert main(["table", "--preset", "flux1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "244 tensors, 83,819,683 numbers"


@pytest.mark.parametrize("words", [["--help"], ["inspect", "--help"], ["table", "--help"]], ids=" ".join)
def test_help_explains_itself(capsys, words):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: " + " ".join(["flax-vae-convert", *words[:-1]]))
    if words == ["--help"]:
        assert "flax-vae-convert inspect FILE" in out and "flax-vae-convert table --preset" in out


def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    code = "import sys; from convert.cli import main; sys.exit(main(['table', '--preset', 'seed-flux']))"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


def test_a_source_named_like_a_command_can_be_reached(work):
    os.rename("ae.safetensors", "inspect")
    assert main(["./inspect", "new", "--to", "flux", "--preset", "tiny"]) == 0
    assert_same(load_folder("new")[1], random_weights())
