"""Which setting wins where several are given, and what is said of those that cannot be."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flax_vae.convert import PRESETS, expand, save_folder
from flax_vae.train.cli import main as cli
from flax_vae.train.cli import plan
from flax_vae.train.cli.flags import SHORT_NAMES, Flags, parse_run_flags
from flax_vae.train.cli.resolve import default_workdir, resolve
from flax_vae.train.config.recipes import default, recipe, with_teacher
from flax_vae.train.config.schema import RENAMED, TrainConfig, flatten_config
from flax_vae.train.errors import RunError, TrainError
from flax_vae.train.run.directory import RunDirectory
from tests.train.conftest import SMALL


def flags(*args):
    return parse_run_flags(Flags, prog="flax-vae-train", args=[str(arg) for arg in args])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A model folder of another architecture than any preset."""
    path = tmp_path_factory.mktemp("weights") / "mine"
    save_folder(path, SMALL, {row.theirs: np.zeros(row.torch_shape, np.float32) for row in expand(SMALL)})
    return path


def file(path, **settings):
    (path / "run.json").write_text(json.dumps(settings))
    return path / "run.json"


def test_no_flag_means_the_recipe_and_each_flag_finds_its_place(tmp_path):
    assert resolve(flags(), tmp_path) == recipe("tiny")
    changed = resolve(
        flags(
            *("--preset", "flux1", "--steps", 7, "--seed", 3, "--parallel", "mesh", "--zero", "--devices-per-image", 2),
            *("--data", "pictures", "--held-out", "x.png", "--crop-size", 16, "--batch-size", 4),
            *("--learning-rate", 0.5, "--warmup-steps", 2),
            *("--dtype", "bfloat16", "--remat", "attention", "--accumulate", 2, "--ema-decay", 0.75),
            *("--start-from", "weights", "--graft", "--trainable", "decoder"),
            *("--kl-weight", 0.25, "--log-every", 1, "--eval-every", 2, "--save-every", 3),
        ),
        tmp_path,
    )
    base = recipe("flux1")
    assert changed == replace(
        base,
        steps=7,
        seed=3,
        start_from="weights",
        graft=True,
        trainable="decoder",
        parallel="mesh",
        zero=True,
        devices_per_image=2,
        dtype="bfloat16",
        remat="attention",
        batch_size=4,
        log_every=1,
        eval_every=2,
        save_every=3,
        data=replace(base.data, folder="pictures", held_out="x.png", crop_size=16),
        optim=replace(base.optim, learning_rate=0.5, warmup_steps=2, accumulate=2, ema_decay=0.75),
        loss=replace(base.loss, kl_weight=0.25),
    )


OF_BEFORE = {
    "trainable": (["--trainable", "decoder"], ["--train", "decoder"]),
    "devices_per_image": (["--devices-per-image", "2"], ["--rows", "2"]),
    "identity_init": (["--no-identity-init"], None),
}


@pytest.mark.parametrize("old", RENAMED)
def test_flags_and_files_of_earlier_versions_are_read(tmp_path, old):
    new, before = OF_BEFORE[RENAMED[old]]
    also = ["--parallel", "mesh", "--start-from", "weights", "--preset", "tiny"]
    for words in [] if before is None else [before, ["=".join(before)]]:
        assert resolve(flags(*also, *words), tmp_path) == resolve(flags(*also, *new), tmp_path)
    value = getattr(resolve(flags(*also, *new), tmp_path), RENAMED[old])
    path = file(tmp_path, **{old: value})
    assert getattr(resolve(flags(*also, "--config", path), tmp_path / "run"), RENAMED[old]) == value


@pytest.mark.parametrize("main", [cli.main, plan.main])
def test_help_and_errors_name_the_flags_of_today(main, capsys):
    for words, status in ((["--help"], 0), (["--rows", "many"], 2)):
        with pytest.raises(SystemExit) as end:
            main(words)
        printed = "".join(capsys.readouterr())
        assert end.value.code == status
        assert "--devices-per-image" in printed and "--rows" not in printed and "--train " not in printed


def test_every_setting_has_a_flag_of_its_name(tmp_path):
    fields = default(SMALL).to_dict()
    words = []
    for name, value in flatten_config(fields).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            part, dot, last = name.rpartition(".")
            words.append(flag if value else f"--{part}{dot}no-{last}")
        elif isinstance(value, (tuple, list)):
            words += [flag, *value]
        else:
            words += [flag, value]
    assert TrainConfig.from_dict(flags(*words).settings) == default(SMALL)
    assert SHORT_NAMES.keys() <= flatten_config(fields).keys()


def test_help_gives_the_default_of_every_setting(capsys):
    with pytest.raises(SystemExit):
        flags("--preset", "kl-f8", "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, value in flatten_config(recipe("kl-f8").to_dict()).items():
        if value is not None and not isinstance(value, (tuple, list)):
            assert str(value) in re.findall(rf"--{name.replace('_', '-')}[ ,].+?\(default: (.+?)\)", text), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stepz", "3"], "unknown option --stepz; did you mean '--steps'?"),
        (["--weight-decay", "0"], "unknown option --weight-decay; did you mean '--optim.weight-decay'?"),
        (["--steps", "many"], "--steps 'many' must be an integer"),
        (["--optim.b1", "x"], "--optim.b1 'x' must be a number"),
        (["--learning-rate", "x"], "--learning-rate/--optim.learning-rate 'x' must be a number"),
        (["--remat", "block"], "--remat block is not a choice; did you mean"),
        (["--dtype", "None"], "--dtype None is not a choice; expected one of float32, bfloat16"),
        (["--steps"], "--steps needs a value"),
        (["stray"], "unexpected argument 'stray'"),
        (["--set", "optim.weight_decay=0"], "--set is no longer an option; use --optim.weight-decay 0"),
    ],
)
@pytest.mark.parametrize(("main", "prog"), [(cli.main, "flax-vae-train"), (plan.main, "flax-vae-train plan")])
def test_a_mistake_ends_in_one_line(words, message, main, prog, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert err.startswith(f"{prog}: {message}") and err.count("\n") == 1


def test_a_run_goes_on_with_its_own_settings(tmp_path, small):
    RunDirectory(tmp_path).begin(small)
    assert resolve(flags(), tmp_path) == small
    assert resolve(flags("--seed", 4), tmp_path) == replace(small, seed=4)
    assert resolve(flags("--preset", "tiny"), tmp_path).model == PRESETS["tiny"]
    assert resolve(flags("--preset", "flux1-finetune"), tmp_path).model == PRESETS["flux1"]


def test_recipe_then_run_then_file_then_flags(tmp_path):
    # Four settings, each given at one level more than the one before.
    names = ["log_every", "eval_every", "save_every", "keep"]
    own = [getattr(recipe("tiny"), name) for name in names]
    run = replace(recipe("tiny"), log_every=2, eval_every=2, save_every=2)
    path = file(tmp_path, preset="tiny", eval_every=3, save_every=3)
    asked = flags("--config", path, "--save-every", 4)

    fresh = resolve(asked, tmp_path / "fresh")
    assert [getattr(fresh, name) for name in names] == [own[0], 3, 4, own[3]]
    RunDirectory(tmp_path / "begun").begin(run)
    begun = resolve(asked, tmp_path / "begun")
    assert [getattr(begun, name) for name in names] == [2, 3, 4, own[3]]


def test_a_file_names_a_preset_and_a_flag_another(tmp_path):
    path = file(tmp_path, preset="kl-f8", loss={"kl_weight": 0.5})
    config = resolve(flags("--config", path), tmp_path / "run")
    assert config == replace(recipe("kl-f8"), loss=replace(recipe("kl-f8").loss, kl_weight=0.5))
    assert resolve(flags("--config", path, "--preset", "flux1"), tmp_path / "run").model == PRESETS["flux1"]


def test_the_record_of_any_run_is_a_file_of_settings(tmp_path, small):
    RunDirectory(tmp_path / "one").begin(replace(small, start_from="no longer there"))
    path = tmp_path / "one" / "config.json"
    assert resolve(flags("--config", path), tmp_path / "two") == replace(small, start_from="no longer there")
    # A field that an architecture leaves out has its default, whatever the preset has.
    mixed = resolve(flags("--config", path, "--preset", "sdxl-reflect"), tmp_path / "three")
    assert mixed.model == small.model


def test_settings_are_judged_together(tmp_path):
    # Each contradicts the recipe by itself.
    config = resolve(flags("--zero", "--parallel", "mesh"), tmp_path)
    assert (config.zero, config.parallel) == (True, "mesh")
    assert resolve(flags("--zero", "--no-zero"), tmp_path).zero is False


def test_weights_say_what_the_model_is_unless_a_preset_does(tmp_path, weights):
    asked = ("--start-from", weights)
    tuned = resolve(flags(*asked), tmp_path)  # small steps, not those from random weights
    assert tuned == replace(default(SMALL), start_from=str(weights), steps=tuned.steps, optim=tuned.optim)
    assert tuned.optim.learning_rate < default(SMALL).optim.learning_rate and tuned.optim.schedule == "constant"
    assert resolve(flags(*asked, "--preset", "flux1-finetune"), tmp_path).model == PRESETS["flux1"]
    student = resolve(flags("--teacher", weights, "--model.decoder-widths", 64, 32), tmp_path)
    config = default(replace(SMALL, decoder_widths=(64, 32)))
    assert student == with_teacher(config, str(weights))
    path = file(tmp_path, preset="sd-decoder-finetune", start_from=str(weights))
    assert resolve(flags("--config", path), tmp_path / "run").trainable == "decoder"
    # A field of the architecture over that of the weights, which a graft adds.
    grafted = resolve(flags(*asked, "--graft", "--model.attn-levels", "None"), tmp_path / "run")
    assert grafted.model == replace(SMALL, attn_levels=None)


def test_a_held_out_image_belongs_to_its_folder(tmp_path, small):
    RunDirectory(tmp_path).begin(small)
    assert small.data.held_out is not None
    assert resolve(flags("--data", small.data.folder), tmp_path).data.held_out == small.data.held_out
    assert resolve(flags("--data", "others"), tmp_path).data.held_out is None
    assert resolve(flags("--data.folder", "others", "--held-out", "z.png"), tmp_path).data.held_out == "z.png"


def test_a_run_is_called_as_what_it_trains(tmp_path):
    path = file(tmp_path, preset="kl-f8")
    assert default_workdir(flags()) == Path("runs/tiny")
    assert default_workdir(flags("--preset", "flux1", "--config", path)) == Path("runs/flux1")
    assert default_workdir(flags("--config", path)) == Path("runs/kl-f8")
    assert default_workdir(flags("--config", file(tmp_path, seed=1))) == Path("runs/run")
    assert default_workdir(flags("--start-from", "models/mine.safetensors")) == Path("runs/mine")


def test_what_a_file_says_wrongly_is_said_of_the_file(tmp_path):
    path = file(tmp_path, optim={"b2": 2})
    with pytest.raises(TrainError, match="b2=2 must be") as caught:
        resolve(flags("--config", path), tmp_path / "run")
    assert str(caught.value).startswith(f"{path}: ")
    assert resolve(flags("--config", path, "--optim.b2", 0.5), tmp_path / "run").optim.b2 == 0.5
    with pytest.raises(ValueError, match="^steps=0 must be"):
        resolve(flags("--config", file(tmp_path, seed=1), "--steps", 0), tmp_path / "run")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--start-from nowhere", "start_from='nowhere' cannot be loaded"),
        ("--start-from X.safetensors", "cannot be loaded: .* does not define scale, shift and padding"),
    ],
)
def test_weights_that_say_nothing_are_refused(tmp_path, monkeypatch, weights, args, message):
    monkeypatch.chdir(tmp_path)
    # Without the configuration beside it and in its header.
    save_file(load_file(weights / "model.safetensors"), tmp_path / "X.safetensors")
    with pytest.raises(RunError, match=message):
        resolve(flags(*args.split()), tmp_path / "run")
