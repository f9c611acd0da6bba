import dataclasses
import json

import pytest

from convert import PRESETS
from train.config import DataConfig, LossConfig, OptimConfig, TrainConfig, differences
from train.recipes import recipe

TINY = PRESETS["tiny"]


@pytest.mark.parametrize("name", [name for name, model in PRESETS.items() if model.time_emb_dim is None])
def test_every_recipe_survives_json(name):
    config = recipe(name)
    assert config.model == PRESETS[name]
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_field_survives_json():
    config = TrainConfig(
        model=TINY,
        data=DataConfig(folder="pictures", held_out="x.png", crop_size=8, shuffle_channels=True),
        optim=OptimConfig(learning_rate=2e-3, final_fraction=0.5, warmup_steps=7, b1=0.5, b2=0.6, weight_decay=0.1),
        loss=LossConfig(kl_weight=0.5, sample=False),
        batch_size=3,
        steps=11,
        seed=5,
        transparent_start=True,
        parallel="mesh",
        dtype="bfloat16",
        remat="blocks",
        log_every=2,
        eval_every=3,
        save_every=4,
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_differences_name_nested_fields():
    before = TrainConfig(model=TINY)
    after = dataclasses.replace(before, seed=3, optim=OptimConfig(learning_rate=0.5))
    assert differences(before, after) == ["optim.learning_rate: 0.0001 -> 0.5", "seed: 0 -> 3"]
    assert differences(before, before) == []


BAD = [
    (lambda: TrainConfig(model=TINY, steps=0), "steps=0 must be a whole number of at least 1"),
    (lambda: TrainConfig(model=TINY, batch_size=True), "batch_size=True"),
    (lambda: TrainConfig(model=TINY, seed=-1), "seed=-1"),
    (lambda: TrainConfig(model=TINY, parallel="pmapp"), "'pmap' or 'mesh'"),
    (lambda: TrainConfig(model=TINY, dtype="float16"), "dtype='float16' must be 'float32' or 'bfloat16'"),
    (lambda: TrainConfig(model=TINY, remat="all"), "remat='all' must be 'none' or 'attention' or 'blocks'"),
    (lambda: TrainConfig(model=TINY, data=DataConfig(crop_size=30)), "crop_size=30 is no multiple of 4"),
    (lambda: TrainConfig(model=PRESETS["seed"]), "time_emb_dim=32.*seed-flux"),
    (lambda: TrainConfig(model=dataclasses.replace(TINY, in_channels=1)), "in_channels=1.*RGB"),
    (lambda: OptimConfig(learning_rate=0.0), "learning_rate=0.0 must be greater than 0"),
    (lambda: OptimConfig(learning_rate=float("nan")), "learning_rate=nan"),
    (lambda: OptimConfig(b2=1.0), "b2=1.0"),
    (lambda: OptimConfig(final_fraction=1.5), "final_fraction=1.5"),
    (lambda: LossConfig(kl_weight=-1.0), "kl_weight=-1.0 must be at least 0"),
    (lambda: TrainConfig.from_dict({}), "lacks model"),
    (lambda: TrainConfig.from_dict({"model": TINY.to_dict(), "stepz": 1}), "did you mean 'steps'"),
    (lambda: TrainConfig.from_dict({"model": TINY.to_dict(), "optim": {"lr": 1}}), "unknown field 'lr' of OptimConfig"),
    (lambda: recipe("tinny"), "did you mean 'tiny'"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
