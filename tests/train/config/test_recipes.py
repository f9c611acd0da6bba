"""Presets that are recipes: the field's own numbers are in them, and those that need weights ask for them."""

import json
from pathlib import Path

import pytest

from flax_vae.convert import PRESETS
from flax_vae.train.cli import recipes
from flax_vae.train.config.recipes import RECIPES, architecture, fine_tuning_recipe, recipe
from flax_vae.train.config.schema import GanConfig, LossConfig, TrainConfig, config_differences


@pytest.mark.parametrize("name", [*RECIPES, *PRESETS])
def test_every_preset_is_a_run_that_survives_json(name):
    config = recipe(name, "weights")
    assert config.model == architecture(name)
    assert config.start_from == "weights"
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", ["flux1-finetune", "sd-decoder-finetune"])
def test_what_goes_on_from_weights_asks_for_them(name):
    with pytest.raises(ValueError, match=f"preset '{name}' needs initial weights; .*--start-from"):
        recipe(name)


def test_a_small_decoder_asks_for_a_teacher_or_for_weights():
    with pytest.raises(ValueError, match="preset 'flux2-small-decoder' .*--teacher.*--start-from"):
        recipe("flux2-small-decoder")
    student, tuned = recipe("flux2-small-decoder", teacher="x"), recipe("flux2-small-decoder", "x")
    assert config_differences(student, tuned) == ["start_from: None -> 'x'", "teacher: 'x' -> None"]
    assert (student.trainable, student.loss.kl_weight) == ("decoder", 0)
    assert student.model.decoder_widths == (96, 192, 384, 384)


def test_both_recipes_of_the_tiny_model_share_its_start_and_its_colours():
    tiny, perceptual = recipe("tiny"), recipe("tiny-perceptual")
    names = {line.partition(":")[0] for line in config_differences(tiny, perceptual)}
    frequencies = {"steps", "log_every", "eval_every", "save_every"}
    assert {name.partition(".")[0] for name in names} == {"loss", "gan", "data", "optim", "batch_size", *frequencies}
    differing = {"data.crop_size", "data.min_scale", "optim.ema_decay"}
    assert {name for name in names if name.startswith(("data.", "optim."))} == differing
    assert (tiny.loss.lpips_weight, tiny.gan.weight) == (0, 0)
    assert perceptual.loss.lpips_weight > 0 and perceptual.gan.weight > 0


def test_the_first_recipe_trains_on_one_device_and_on_two():
    assert recipe("tiny").batch_size % 2 == 0


def test_latent_diffusion_is_trained_as_its_authors_did():
    config = recipe("kl-f8")
    assert config.loss == LossConfig("l1", "sum", kl_weight=1e-6, lpips_weight=1.0)
    rate = 4.5e-6 * config.batch_size
    assert config.gan == GanConfig(0.5, 50_001, "hinge", adaptive=True, learning_rate=rate, b1=0.5, b2=0.9)
    optim = config.optim
    assert (optim.learning_rate, optim.b1, optim.b2, optim.weight_decay) == (rate, 0.5, 0.9, 0.0)
    assert (optim.schedule, optim.warmup_steps, config.batch_size // optim.accumulate) == ("constant", 0, 12)


def test_a_decoder_is_tuned_as_the_model_card_says():
    config = recipe("sd-decoder-finetune", "weights")
    assert (config.model, config.trainable, config.batch_size, config.steps) == (
        PRESETS["sd1"],
        "decoder",
        192,
        280_000,
    )
    assert (config.loss.distance, config.loss.lpips_weight, config.gan.weight) == ("mse", 0.1, 0.0)
    assert (config.optim.ema_decay, config.optim.schedule) == (0.9999, "constant")


VARIANTS = [name for name in RECIPES if name.endswith(("gb", "-v5e"))]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_for_hardware_trains_as_its_recipe_does(name):
    base, variant = (recipe(one, "weights") for one in (name.rpartition("-")[0], name))
    differing = {line.partition(":")[0] for line in config_differences(base, variant)}
    how = {"dtype", "remat", "optim.accumulate"}
    length = {"steps", "optim.warmup_steps", "gan.start", "eval_every", "save_every", "log_every"}
    assert differing <= how | length and variant.dtype == "bfloat16"
    assert variant.steps == base.steps or variant.gan.start < variant.steps


def test_the_recipes_are_a_table_which_the_guide_shows(capsys):
    assert recipes.main(["--markdown"]) == 0
    table = capsys.readouterr().out
    head, _, *rows = (line.split(" | ") for line in table.splitlines())
    assert [row[0].removeprefix("| ") for row in rows] == list(RECIPES) and len(head) == 6
    assert all(cell.strip(" |") for row in rows for cell in (row[1], row[4], row[5]))
    assert table in (Path(__file__).parents[3] / "docs/guides/finetuning.md").read_text("utf-8")
    assert recipes.main([]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 160


def test_weights_of_published_models_choose_their_recipe():
    assert fine_tuning_recipe(PRESETS["flux1"], "x") == recipe("flux1-finetune", "x")
    sdxl = fine_tuning_recipe(PRESETS["sdxl"], "x")
    assert (sdxl.model, sdxl.trainable, sdxl.loss.lpips_weight) == (PRESETS["sdxl"], "decoder", 0.1)
    assert fine_tuning_recipe(PRESETS["kl-f16"], "x").optim.learning_rate == 1e-5


def test_an_unknown_preset_is_answered_with_the_nearest_and_all():
    with pytest.raises(ValueError, match="unknown preset 'flux1-finetun'; did you mean 'flux1-finetune'.* kl-f4,"):
        recipe("flux1-finetun")
    with pytest.raises(ValueError, match="unknown preset 'tiny-perceptive'; did you mean 'tiny-perceptual'"):
        architecture("tiny-perceptive")
