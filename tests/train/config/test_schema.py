import dataclasses
import json

import pytest

from flax_vae.convert import PRESETS
from flax_vae.train.config.recipes import recipe
from flax_vae.train.config.schema import (
    DataConfig,
    GanConfig,
    LatentConfig,
    LossConfig,
    OptimConfig,
    TimeConfig,
    TrainConfig,
    ValidationConfig,
    config_differences,
)

TINY = PRESETS["tiny"]
FLUX2 = PRESETS["flux2"]


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_recipe_survives_json(name):
    config = recipe(name, teacher="model" if name == "flux2-small-decoder" else None)
    assert config.model == PRESETS[name]
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_field_survives_json():
    config = TrainConfig(
        model=TINY,
        data=DataConfig(folder="pictures", held_out="x.png", crop_size=48, shuffle_channels=True),
        optim=OptimConfig(
            2e-3,
            "constant",
            0.5,
            7,
            0.5,
            0.6,
            1e-6,
            0.1,
            clip_norm=2.0,
            accumulate=3,
            ema_decay=0.9,
            part_learning_rates="decoder.mid=1e-4",
        ),
        loss=LossConfig("mse", "sum", 0.5, 0.1, False, 1.0, "alex", "lpips.pth", True, 0.5, 0.25, 0.125),
        latents=LatentConfig(1e-3, 0.8, 1e-3),
        gan=GanConfig(0.5, 3, "non_saturating", False, 1.0, 16, 2, 1e-3, 0.4, 0.8),
        time=TimeConfig("logit_normal", 1.0, 2.0, 1.5),
        validation=ValidationConfig("judges", 5, 32, "none", 2, "vgg", "lpips.pth", "numpy:mean", True, "rfid", 4),
        start_from="flux1",
        raw_weights=True,
        graft=True,
        trainable="encoder,decoder.mid",
        batch_size=3,
        steps=11,
        seed=5,
        parallel="mesh",
        zero=True,
        devices_per_image=3,
        dtype="bfloat16",
        remat="blocks",
        log_every=2,
        eval_every=3,
        save_every=4,
        keep=5,
        max_skipped=6,
        tensorboard=True,
        wandb=True,
    )
    defaults = {
        name: value for name, value in TrainConfig(model=TINY).to_dict().items() if name not in ("model", "data")
    }
    unchanged = [name for name, value in config.to_dict().items() if value == defaults.get(name)]
    assert unchanged == ["teacher", "identity_init"]  # which contradict other settings of this run
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# `config.json` of a run of `sd-decoder-finetune`, as version 0.1 wrote it before settings were renamed and added.
OLD = """
{"model": {"resolution": 256, "in_channels": 3, "ch": 128, "out_ch": 3, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2,
"z_channels": 4, "scale_factor": 0.18215, "shift_factor": 0.0, "time_emb_dim": null, "attn_levels": [],
"downsample_padding": "asymmetric", "quant_conv": true, "learnable_logvar": false, "time_embedding": "linear",
"latent_norm": "scale", "clamp_logvar": true}, "data": {"folder": null, "held_out": null, "crop_size": 256,
"shuffle_channels": false, "resize": null, "min_scale": 1.0, "flip": true, "bad_files": "refuse",
"max_bad_fraction": 0.01, "max_bad_count": 10}, "optim": {"learning_rate": 1e-05, "schedule": "constant",
"final_fraction": 0.01, "warmup_steps": 1000, "b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "clip_norm": 1.0,
"accumulate": 1, "ema_decay": 0.9999}, "loss": {"distance": "mse", "reduction": "mean", "kl_weight": 0.0,
"free_bits": 0.0, "sample": true, "lpips_weight": 0.1, "lpips_net": "vgg", "lpips_weights": null,
"learn_logvar": false, "logvar": 0.0}, "gan": {"weight": 0.0, "start": 50001, "loss": "hinge", "adaptive": true,
"r1": 0.0, "features": 64, "layers": 3, "learning_rate": 0.0001, "b1": 0.5, "b2": 0.9}, "time": {"sampler": "uniform",
"low": 0.0, "high": 1000.0, "evaluate_at": 0.0}, "start_from": "weights", "raw_weights": false, "graft": false,
"train": "decoder", "batch_size": 192, "steps": 280000, "seed": 0, "transparent_start": false, "parallel": "mesh",
"zero": false, "rows": 2, "dtype": "float32", "remat": "none", "log_every": 50, "eval_every": 1000, "save_every": 200,
"keep": 2, "max_skipped": 10, "tensorboard": false}
"""


def test_a_configuration_of_an_earlier_version_is_read():
    config = TrainConfig.from_dict(json.loads(OLD))
    assert config == dataclasses.replace(recipe("sd-decoder-finetune", "weights"), parallel="mesh", devices_per_image=2)
    assert (config.trainable, config.devices_per_image, config.identity_init) == ("decoder", 2, False)
    with pytest.raises(ValueError, match="rows is the earlier name of devices_per_image"):
        TrainConfig.from_dict({**json.loads(OLD), "devices_per_image": 2})


def test_differences_name_nested_fields():
    before = TrainConfig(model=TINY)
    after = dataclasses.replace(before, seed=3, optim=OptimConfig(learning_rate=0.5))
    assert config_differences(before, after) == ["optim.learning_rate: 0.0001 -> 0.5", "seed: 0 -> 3"]
    assert config_differences(before, before) == []
    reflected = dataclasses.replace(before, model=dataclasses.replace(before.model, padding_mode="reflect"))
    assert config_differences(before, reflected) == ["model.padding_mode: 'zeros' -> 'reflect'"]
    assert config_differences(reflected, before) == ["model.padding_mode: 'reflect' -> 'zeros'"]


BAD = [
    (lambda: TrainConfig(model=TINY, steps=0), "steps=0 must be a whole number of at least 1"),
    (lambda: TrainConfig(model=TINY, batch_size=True), "batch_size=True"),
    (lambda: TrainConfig(model=TINY, seed=-1), "seed=-1"),
    (lambda: TrainConfig(model=TINY, start_from={"a": 1}), "start_from={'a': 1} must be text"),
    (lambda: DataConfig(flip="no"), "flip='no' must be true or false"),
    (
        lambda: TrainConfig(model=TINY, seed=2**64),
        "seed=18446744073709551616 must be at most 9,223,372,036,854,775,807",
    ),
    (lambda: TrainConfig(model=TINY, steps=2**70), "must be at most 2,147,483,647"),
    (lambda: OptimConfig(learning_rate=1e39), "learning_rate=1e.39 must be a finite number, at most 3.4"),
    (lambda: OptimConfig(learning_rate=10**5000), "learning_rate=a long number must be a finite number"),
    (lambda: TrainConfig(model=TINY, parallel="pmapp"), "'pmap' or 'mesh'"),
    (lambda: TrainConfig(model=TINY, dtype="float16"), "dtype='float16' must be 'float32' or 'bfloat16'"),
    (lambda: TrainConfig(model=TINY, remat="all"), "remat='all' must be 'none' or 'attention' or 'blocks'"),
    (lambda: TrainConfig(model=TINY, data=DataConfig(crop_size=30)), "crop_size=30 must be a multiple of 4"),
    (lambda: TrainConfig(model=dataclasses.replace(PRESETS["seed"], time_emb_dim=7)), "time_emb_dim=7 must be even"),
    (lambda: TrainConfig(model=TINY, zero=True), "zero=True needs parallel='mesh'"),
    (lambda: TrainConfig(model=TINY, devices_per_image=0), "devices_per_image=0 must be a whole number of at least 1"),
    (lambda: TrainConfig(model=TINY, devices_per_image=2), "devices_per_image=2 needs parallel='mesh', not 'pmap'"),
    (
        lambda: TrainConfig(model=TINY, data=DataConfig(crop_size=36), parallel="mesh", devices_per_image=2),
        "crop_size=36 makes latents of 9 rows, which devices_per_image=2 .* a multiple of 8",
    ),
    (lambda: TrainConfig(model=TINY, graft=True), "graft=True .* start_from"),
    (lambda: TrainConfig(model=TINY, start_from="x", identity_init=True), "identity_init=True .* start_from='x'"),
    (lambda: TrainConfig(model=TINY, trainable="decoder"), "trainable='decoder' .* start_from"),
    (
        lambda: TrainConfig(model=TINY, start_from="x", trainable="decoder.conv_ot"),
        "trainable: 'decoder.conv_ot' matches no weight .* did you mean 'decoder.conv_out', 'encoder.conv_out' or ",
    ),
    (lambda: TrainConfig(model=FLUX2, start_from="x", trainable="encoder,bn"), "'bn' holds .* statistics"),
    (
        lambda: TrainConfig(model=TINY, optim=OptimConfig(part_learning_rates="encoder.conv_in=1e-5,decoder")),
        "must be patterns with a rate each, .* 'decoder' is not",
    ),
    (lambda: OptimConfig(part_learning_rates="decoder=0"), "part_learning_rates: decoder=0.0 must be greater than 0"),
    (
        lambda: TrainConfig(
            model=TINY, start_from="x", trainable="decoder", optim=OptimConfig(part_learning_rates="encoder=1e-5")
        ),
        "'encoder' has no weight that is trained",
    ),
    (
        lambda: TrainConfig(model=TINY, batch_size=8, optim=OptimConfig(accumulate=3)),
        "batch_size=8 must be a multiple of accumulate=3",
    ),
    (lambda: TimeConfig(low=2.0, high=1.0), "low=2.0 must be less than high=1.0"),
    (lambda: GanConfig(loss="wgan"), "loss='wgan' must be 'hinge' or 'non_saturating'"),
    (lambda: TrainConfig(model=TINY, data=DataConfig(crop_size=16), gan=GanConfig(weight=1.0)), "needs 24 pixels"),
    (lambda: GanConfig(layers=0), "layers=0 must be"),
    (lambda: TrainConfig(model=dataclasses.replace(TINY, in_channels=1)), "in_channels=1.*RGB"),
    (lambda: OptimConfig(learning_rate=0.0), "learning_rate=0.0 must be greater than 0"),
    (lambda: OptimConfig(eps=0.0), "eps=0.0 must be greater than 0"),
    (lambda: OptimConfig(learning_rate=float("nan")), "learning_rate=nan"),
    (lambda: OptimConfig(b2=1.0), "b2=1.0"),
    (lambda: OptimConfig(final_fraction=1.5), "final_fraction=1.5"),
    (lambda: LatentConfig(equivariance=1.5), "equivariance=1.5 must be between 0 and 1"),
    (lambda: LatentConfig(equivariance_weight=1.0), "equivariance_weight=1.0 has no effect with equivariance=0; set"),
    (
        lambda: TrainConfig(
            TINY, DataConfig(crop_size=32), latents=LatentConfig(0.5), gan=GanConfig(weight=0.1, layers=3)
        ),
        "crop_size=32, reduced to 8 by latents.equivariance=0.5, is too small for gan.layers=3, which needs",
    ),
    (lambda: LossConfig(kl_weight=-1.0), "kl_weight=-1.0 must be at least 0"),
    (lambda: LossConfig(kl_weight="1e-6"), "kl_weight='1e-6' must be a finite number"),
    (lambda: LossConfig(distance="l2"), "distance='l2' must be 'l1' or 'mse' or 'charbonnier'"),
    (lambda: TrainConfig.from_dict({}), "lacks model"),
    (lambda: TrainConfig.from_dict({"model": TINY.to_dict(), "stepz": 1}), "did you mean 'steps'"),
    (lambda: TrainConfig.from_dict({"model": TINY.to_dict(), "optim": {"lr": 1}}), "unknown field 'lr' of OptimConfig"),
    (lambda: recipe("tinny"), "did you mean 'tiny'"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
