import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from flax_vae.convert import LAYOUTS, PRESETS, ConversionError, expand
from flax_vae.convert.cli.main import main
from flax_vae.convert.cli.report import describe_machine
from flax_vae.convert.cli.run_both import LayerErrors, largest_by_block
from flax_vae.convert.extras import install_command
from flax_vae.convert.formats.safetensors import read_tensors, write_tensors
from flax_vae.convert.table.identification import Weights
from flax_vae.convert.weights.diffusers_config import write_diffusers_config
from flax_vae.convert.weights.folder import load_folder, save_folder
from flax_vae.convert.weights.save import save_weights
from tests.convert.samples import assert_same, everything_in, random_weights

TINY = PRESETS["tiny"]
SMALL = replace(PRESETS["sdxl"], ch=32, ch_mult=(1, 2), num_res_blocks=1)  # what every layout can express


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
    assert re.match(r"flax-vae-convert( \w+)?: ", err) and "Traceback" not in err
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
    assert "in the configuration beside the weights, ch is 32, not 128" in message


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
    assert "absent does not exist; give a folder, or a file of" in refused(capsys, work, "absent", *tail)
    assert "the tensors fit tiny; choose with preset= (--preset)" in refused(capsys, work, "ae.safetensors", *tail)
    assert "empty holds no model" in refused(capsys, work, "empty", *tail)
    short = refused(capsys, work, "short.safetensors", *tail, "--preset", "tiny")
    assert "short.safetensors is not a complete safetensors file" in short


def test_bad_targets_are_refused(work, capsys):
    Path("file").write_text("precious")
    Path("model/notes.txt").write_text("precious")
    tail = ("--to", "flux", "--preset", "tiny", "--force")
    assert "file is a file; a model folder needs" in refused(capsys, work, "ae.safetensors", "file", *tail)
    assert "(notes.txt) and is never replaced" in refused(capsys, work, "ae.safetensors", "model", *tail)
    assert "file" in refused(capsys, work, "ae.safetensors", "file/below", *tail)


def test_a_misused_command_line_exits_with_2(capsys):
    assert "missing SRC, DST, --to" in misused(capsys)
    assert "--preset tinny is not a choice; did you mean 'tiny'?" in misused(
        capsys, "a", "b", "--to", "flux", "--preset", "tinny"
    )
    assert "--to fluxx is not a choice; did you mean 'flux'?" in misused(capsys, "a", "b", "--to", "fluxx")
    assert "--forse" in misused(capsys, "a", "b", "--to", "flux", "--forse")
    assert "FILE" in misused(capsys, "inspect")
    assert "--preset" in misused(capsys, "table")


def printed(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A working directory that holds weights which every layout can express, as a model folder."""
    monkeypatch.chdir(tmp_path)
    save_folder("model", SMALL, random_weights(params=SMALL))
    return tmp_path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_there_and_back(small, capsys, layout):
    assert main(["model", "there.safetensors", "--to", layout]) == 0
    assert set(read_tensors("there.safetensors")) == {row.theirs for row in expand(SMALL, layout)}
    assert main(["verify", "model", "there.safetensors"]) == 0
    assert main(["there.safetensors", "back", "--to", "flux"]) == 0  # the file says its architecture
    assert_same(load_folder("back")[1], random_weights(params=SMALL))


def test_a_folder_of_diffusers(small, capsys):
    assert main(["model", "vae", "--to", "diffusers"]) == 0
    assert sorted(os.listdir("vae")) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert main(["vae", "back", "--to", "flux"]) == 0
    assert load_folder("back")[0] == SMALL
    capsys.readouterr()
    assert "'ldm' layout has no folders" in refused(capsys, small, "vae", "x", "--to", "ldm")


def test_a_folder_of_the_former_flax_class(small, capsys):
    assert main(["model", "vae", "--to", "diffusers-flax"]) == 0
    assert sorted(os.listdir("vae")) == ["config.json", "diffusion_flax_model.msgpack"]
    assert main(["verify", "model", "vae"]) == 0
    assert main(["vae", "back", "--to", "flux"]) == 0
    assert load_folder("back")[0] == SMALL
    assert_same(load_folder("back")[1], random_weights(params=SMALL))


def test_what_is_changed_or_left_out_is_said(small, capsys):
    inside = {f"first_stage_model.{key}": t for key, t in random_weights(params=SMALL, layout="ldm").items()}
    others = {f"model.diffusion_model.{number}": np.ones(2, np.float32) for number in range(5)}
    write_tensors("sd.safetensors", inside | others)
    Path("config.json").write_text(json.dumps(SMALL.to_dict()))
    command = ["sd.safetensors", "vae.safetensors", "--to", "ldm", "--config", "config.json", "--dtype", "bfloat16"]
    assert main([*command, "--to-prefix", "first_stage_model."]) == 0
    first, rounded, under, left_out = capsys.readouterr().out.splitlines()
    assert first.startswith("vae.safetensors: ") and first.endswith(" numbers, bfloat16")
    assert rounded == "rounded: float32 became bfloat16"
    assert under == "taken from under 'first_stage_model.'"
    assert left_out.startswith("left out of sd.safetensors: 5 tensors (model.diffusion_model.0, ")
    assert set(read_tensors("vae.safetensors")) == set(inside)
    assert main([*command, "--force", "--json"]) == 0
    report = printed(capsys)
    assert report["rounded_from"] == {"float32": len(inside)} and len(report["left_out"]) == 5
    assert report["architecture"] == SMALL.to_dict()


def test_one_of_several_autoencoders_is_chosen(work):
    twice = {f"{name}.{key}": number * t for number, name in enumerate("ab") for key, t in random_weights().items()}
    write_tensors("two.safetensors", twice)
    command = ["two.safetensors", "new.safetensors", "--to", "flux", "--preset", "tiny"]
    assert main(command) == 1
    assert main([*command, "--prefix", "b."]) == 0
    assert_same(read_tensors("new.safetensors"), random_weights())
    assert main(["inspect", "two.safetensors"]) == 1
    assert main(["inspect", "two.safetensors", "--prefix", "a"]) == 0
    assert main(["verify", "two.safetensors", "new.safetensors", "--prefix", "b"]) == 0
    assert main(["verify", "two.safetensors", "new.safetensors", "--prefix", "a"]) == 1


def test_a_name_of_two_lines_is_printed_in_one(small, capsys):
    assert refused(capsys, small, "no\nmodel", "new", "--to", "flux").count("\n") == 1


def test_a_variant_is_chosen(small):
    assert main(["model", "vae", "--to", "diffusers"]) == 0
    assert main(["model", "half", "--to", "diffusers", "--dtype", "float16"]) == 0
    name = "diffusion_pytorch_model"
    Path("half", f"{name}.safetensors").rename(f"vae/{name}.fp16.safetensors")
    assert main(["vae", "one.safetensors", "--to", "ldm"]) == 0
    assert main(["vae", "two.safetensors", "--to", "ldm", "--variant", "fp16"]) == 0
    assert {str(t.dtype) for t in read_tensors("one.safetensors").values()} == {"float32"}
    assert {str(t.dtype) for t in read_tensors("two.safetensors").values()} == {"float16"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_floats_of_eight_bits_are_rounded_to_what_was_asked_for(small, capsys, dtype):
    weights = {key: array.astype("float8_e4m3fn") for key, array in random_weights(params=SMALL).items()}
    save_folder("eight", SMALL, weights)
    assert main(["eight", "wide.safetensors", "--to", "ldm", "--dtype", dtype, "--json"]) == 0
    report = printed(capsys)
    assert report["dtypes"] == {dtype: len(weights)} and report["rounded_from"] == {"float8_e4m3fn": len(weights)}
    found = read_tensors("wide.safetensors")
    assert (
        found["decoder.conv_out.bias"].astype(float).tolist() == weights["decoder.conv_out.bias"].astype(float).tolist()
    )


def test_integers_are_no_weights(small, capsys):
    write_tensors("whole.safetensors", {key: t.astype(np.int8) for key, t in random_weights(params=SMALL).items()})
    Path("config.json").write_text(json.dumps(SMALL.to_dict()))
    message = refused(capsys, small, "whole.safetensors", "whole", "--to", "flux", "--config", "config.json")
    assert "whole.safetensors: " in message and "weights are not floating-point" in message
    assert main(["inspect", "whole.safetensors"]) == 1
    assert "weights are not floating-point" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["ours", "diffusers"])
def test_a_configuration_can_be_given(small, form):
    fields = SMALL.to_dict() if form == "ours" else write_diffusers_config(SMALL)
    Path("given.json").write_text(json.dumps(fields))
    write_tensors("bare.safetensors", random_weights(params=SMALL))
    assert main(["bare.safetensors", "new", "--to", "flux", "--config", "given.json"]) == 0
    assert load_folder("new")[0] == SMALL


def test_inspect_says_what_a_file_holds(work, capsys):
    assert main(["inspect", "ae.safetensors", "--json"]) == 0
    report = printed(capsys)
    assert (report["layout"], report["prefix"], report["kind"]) == ("flux", "", "safetensors")
    assert report["dtypes"] == {"float32": len(random_weights())} and report["tensors"] == len(random_weights())
    assert report["presets"] == ["tiny"] and not report["config_known"] and report["digest"] == "verified"
    assert main(["inspect", "model", "--json", "--tensors"]) == 0
    report = printed(capsys)
    assert report["config_known"] and report["architecture"] == TINY.to_dict()
    assert report["all_tensors"]["encoder.conv_in.bias"] == {"shape": [TINY.ch], "dtype": "float32"}
    assert main(["inspect", "model", "--tensors"]) == 0
    out = capsys.readouterr().out
    assert "presets" in out and "encoder.conv_in.bias" in out


def test_inspect_prints_a_question_mark_for_what_it_does_not_know(work, capsys):
    save_weights("sd.safetensors", Weights(random_weights(params=SMALL), "flux", SMALL), "ldm")
    write_tensors("bare.safetensors", read_tensors("sd.safetensors"))
    untold = {"scale_factor", "shift_factor", "downsample_padding", "resolution", "clamp_logvar"}
    untold |= {"padding_mode", "latent_mean", "latent_std"}
    assert main(["inspect", "bare.safetensors"]) == 0
    rows = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines() if line.split()[1:]}
    assert {name for name, value in rows.items() if value == "?"} == untold
    assert (rows["layout"], rows["time_embedding"], rows["z_channels"]) == ("ldm", "linear", "4")
    assert main(["inspect", "bare.safetensors", "--json"]) == 0
    report = printed(capsys)
    assert {name for name in untold if report["architecture"][name] is None} == set(report["unknown"]) == untold
    assert main(["inspect", "sd.safetensors", "--json"]) == 0
    report = printed(capsys)
    assert report["unknown"] == [] and report["architecture"] == SMALL.to_dict()
    save_folder("ours", SMALL, random_weights(params=SMALL))
    assert main(["inspect", "ours", "--json"]) == 0
    assert printed(capsys)["layout"] == "flux"  # which a model folder of ours always is


def test_inspect_names_the_nearest_preset_and_numbers_that_are_not_finite(small, capsys):
    weights = random_weights(params=SMALL)
    weights["decoder.conv_out.bias"][1] = np.nan
    safetensors.numpy.save_file(weights, "bad.safetensors")
    assert main(["inspect", "bad.safetensors", "--json"]) == 1
    report = printed(capsys)
    assert report["non_finite"] == ["decoder.conv_out.bias"] and report["digest"] == "none"
    assert report["presets"] == [] and report["nearest_preset"] in PRESETS and report["differences"]
    assert main(["inspect", "bad.safetensors"]) == 1
    out = capsys.readouterr().out
    assert "none; the nearest is " in out and "1 tensors (decoder.conv_out.bias)" in out


def test_inspect_counts_what_it_does_not_understand(work, capsys):
    arrays = {"a": np.zeros(2, np.float16), "b": np.zeros((), np.int64), "c": np.zeros((2, 2), np.float16)}
    write_tensors("mixed.safetensors", arrays)
    assert main(["inspect", "mixed.safetensors"]) == 1
    out = capsys.readouterr().out
    assert "3 tensors, 7 numbers, 2 x float16, 1 x int64" in out
    assert "no tensor is an encoder's first convolution" in out


def test_inspect_refuses_what_it_cannot_read(work, capsys):
    Path("notes.txt").write_text("no weights")
    assert "notes.txt is of an unknown kind" in refused(capsys, work, "inspect", "notes.txt")
    assert "absent does not exist" in refused(capsys, work, "inspect", "absent")


def test_verify_lists_what_differs(small, capsys):
    weights = random_weights(params=SMALL)
    weights["encoder.mid.attn_1.q.weight"] = weights["encoder.mid.attn_1.q.weight"].swapaxes(0, 1)
    weights["decoder.conv_out.bias"] = weights["decoder.conv_out.bias"] + np.float32(0.5)
    save_folder("other", replace(SMALL, downsample_padding="symmetric"), weights)
    assert main(["verify", "model", "other", "--json"]) == 1
    found = {d["name"]: d for d in printed(capsys)["differences"]}
    assert set(found) == {"downsample_padding", "encoder/mid/attn_1/q/kernel", "decoder/conv_out/bias"}
    assert found["decoder/conv_out/bias"]["largest"] == pytest.approx(0.5, rel=1e-5)
    assert main(["verify", "model", "other"]) == 1
    assert capsys.readouterr().out.startswith("not the same: 3 differences in ")
    assert "pass B, or --run PICTURE" in refused(capsys, small, "verify", "model")


def test_verify_sees_another_dtype_and_another_shape(small, capsys):
    assert main(["model", "half.safetensors", "--to", "ldm", "--dtype", "float16"]) == 0
    capsys.readouterr()
    assert main(["verify", "model", "half.safetensors", "--json"]) == 1
    report = printed(capsys)
    assert len(report["differences"]) == report["tensors"]
    wider = replace(SMALL, ch_mult=(1, 3))
    save_folder("wider", wider, random_weights(params=wider))
    assert main(["verify", "model", "wider"]) == 1
    assert "shapes (3, 3, 32, 64) and (3, 3, 32, 96)" in capsys.readouterr().out


def test_verify_keeps_what_is_not_finite_in_the_largest_errors_of_a_block():
    nan = float("nan")
    errors = {"up.norm1": LayerErrors(1e-7, 2e-7, nan), "up.conv1": LayerErrors(nan, 1e-7, 1e-15)}
    np.testing.assert_equal(tuple(largest_by_block(errors)["up"]), (nan, 2e-7, nan))


@pytest.mark.torch  # whose version is in the report, too
def test_a_report_names_the_version_of_the_code_that_ran(monkeypatch):
    monkeypatch.setattr("flax_vae.__version__", "9.9")  # not the installed one
    assert describe_machine(("cpu", "cpu"))["versions"].startswith("flax-vae 9.9, jax ")


def test_verify_prints_json_without_numbers_that_json_cannot_hold(small, capsys):
    weights = random_weights(params=SMALL)
    weights["decoder.conv_out.bias"] = weights["decoder.conv_out.bias"] + np.float32(np.nan)
    save_folder("other", SMALL, weights)
    assert main(["verify", "model", "other", "--json"]) == 1
    assert printed(capsys)["differences"][0]["largest"] is None


@pytest.mark.torch
def test_verify_runs_both_frameworks_and_names_the_first_layer_that_diverges(small, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # for the processes that it starts
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (17, 26, 3), np.uint8)).save("picture.png")
    weights = {key: 0.1 * array for key, array in random_weights(params=SMALL).items()}
    save_folder("a", SMALL, weights)
    assert main(["verify", "a", "--run", "picture.png", "--json", "--report", "report.md"]) == 0
    told = printed(capsys)
    drift = told["run"]
    assert drift["size"] == [16, 26] and drift["first"] is None
    assert max((drift["blocks"] | drift["outputs"]).values()) < 1e-4
    assert list(drift["blocks"])[0] == "encoder.conv_in" and "encoder.down.0.block.0" in drift["blocks"]
    errors = drift["errors"]
    assert {"latents", "images", "encoder.mid.attn_1.q", "decoder.up.0.block.0.conv1"} <= errors.keys()
    assert max(found["exact"] for found in errors.values()) < 1e-12
    assert 1e-8 < min(max(found["flax"], found["torch"]) for found in errors.values()) < 1e-5
    report = Path("report.md").read_text("utf-8")
    assert "\nEvery block agrees within 0.001 in float32 and 1e-09 in float64.\n" in report
    assert told["weights_sha256"][0] in report and f"torch {importlib.metadata.version('torch')}" in report
    assert hashlib.sha256(Path("picture.png").read_bytes()).hexdigest() in report
    assert "| `decoder.conv_out.bias` | float32 | 3 | `" in report
    assert "\n| encoder.mid.attn_1.q | " in report
    message = refused(capsys, small, "verify", "a", "--run", "x.png", "--report", "report.md")
    assert "report.md exists already" in message
    assert "pass --run PICTURE too" in refused(capsys, small, "verify", "a", "a", "--report", "other.md")
    weights["encoder.mid.attn_1.v.weight"] = weights["encoder.mid.attn_1.v.weight"].swapaxes(0, 1)
    save_folder("b", SMALL, weights)
    assert main(["verify", "a", "b", "--run", "picture.png"]) == 1
    assert "the first layer that diverges is encoder.mid.attn_1.v" in capsys.readouterr().out
    assert "is not an image that Pillow can read" in refused(capsys, small, "verify", "a", "--run", "a/config.json")


DYING = {
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL; if memory ran out"),
    "defect": ("raise RuntimeError('first line\\nsecond line')", "failed: second line"),
    "refused": ("import sys; sys.exit('dying: the sentence')", "flax-vae-convert verify: the sentence"),
    "silent": ("import sys; sys.exit(3)", "failed: exit status 3"),
}


@pytest.mark.torch
@pytest.mark.parametrize("how", DYING)
def test_a_framework_that_dies_ends_the_command_in_one_line(small, capsys, monkeypatch, tmp_path_factory, how):
    folder, temporary = tmp_path_factory.mktemp("module"), tmp_path_factory.mktemp("temporary")
    code, words = DYING[how]
    (folder / "dying.py").write_text(code)
    (folder / "waiting.py").write_text("import time; time.sleep(300)")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("flax_vae.convert.cli.main.FLAX", "dying")
    monkeypatch.setattr("flax_vae.convert.cli.main.TORCH", "waiting")
    message = refused(capsys, small, "verify", "model", "--run", "picture.png")
    assert words in message and message.count("\n") == 1
    assert list(temporary.iterdir()) == []


def test_running_without_a_framework_names_the_extra(small, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refused(capsys, small, "verify", "model", "--run", "picture.png")
    assert message.rstrip().endswith(f": {install_command('torch')}")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_table_shows_every_row(capsys, preset, layout):
    try:
        expand(PRESETS[preset], layout)
    except ConversionError:
        assert main(["table", "--preset", preset, "--layout", layout]) == 1
        assert f"the {layout!r} layout has no name for" in capsys.readouterr().err
        return
    assert main(["table", "--preset", preset, "--layout", layout]) == 0
    _, *lines, total = capsys.readouterr().out.splitlines()
    rows = expand(PRESETS[preset], layout)
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        parts = [row.ours, *str(row.shape).split(), row.theirs, *str(row.torch_shape).split(), *row.op.name.split()]
        assert line.split() == parts
    assert total.startswith(f"{len(rows):,} tensors, ")


def test_table_shows_layouts_side_by_side(capsys):
    assert main(["table", "--preset", "sd1", "--layout", "ldm", "diffusers", "diffusers-legacy"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("encoder/mid/attn_1/q/kernel")]
    for name in ("encoder.mid.attn_1.q.weight", "mid_block.attentions.0.to_q.weight", "attentions.0.query.weight"):
        assert name in line


def test_table_counts_the_published_numbers(capsys):
    assert main(["table", "--preset", "flux1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "244 tensors, 83,819,683 numbers"


@pytest.mark.parametrize(
    "words", [["--help"], ["inspect", "--help"], ["verify", "--help"], ["table", "--help"]], ids=" ".join
)
def test_help_explains_itself(capsys, words):
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: " + " ".join(["flax-vae-convert", *words[:-1]]))
    if words == ["--help"]:
        assert "flax-vae-convert inspect FILE" in out and "flax-vae-convert table --preset" in out


def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    command = [sys.executable, "-m", "flax_vae.convert", "table", "--preset", "seed-flux"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


def test_a_source_named_like_a_command_can_be_reached(work):
    os.rename("model", "inspect")
    assert main(["./inspect", "new", "--to", "flux"]) == 0
    assert_same(load_folder("new")[1], random_weights())
