"""Tests of runs that train only a part of the weights."""

import re
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from flax_vae import AutoEncoder, save_pretrained
from flax_vae.convert import load_weights
from flax_vae.convert.table import expand, unflatten
from flax_vae.train.build import make_components, make_state
from flax_vae.train.config import GanConfig
from flax_vae.train.loop import train
from flax_vae.train.report import read_metrics
from flax_vae.train.step import train_step

PART = ("encoder.conv_out.", "decoder.up.0.", "decoder.conv_out.")


@pytest.fixture(scope="module")
def start(small, tmp_path_factory):
    """Returns a model folder with random weights."""
    rng = np.random.default_rng(1)
    params = {row.ours: rng.normal(0, 0.05, row.shape).astype(np.float32) for row in expand(small.model)}
    folder = tmp_path_factory.mktemp("start") / "model"
    save_pretrained(folder, AutoEncoder(small.model), unflatten(params))
    return folder


def test_the_adaptive_weight_needs_the_last_kernel_which_is_not_trained(small):
    config = replace(small, start_from="x", trainable="decoder.up.0", gan=GanConfig(weight=0.5, layers=1))
    components = make_components(config)
    state = jax.eval_shape(partial(make_state, config, components))
    step = partial(train_step, components=components, config=config)
    after, scores = jax.eval_shape(step, state, jax.ShapeDtypeStruct((4, 16, 16, 3), np.float32), {})
    assert "d_weight" in scores and jax.tree.structure(after) == jax.tree.structure(state)


def test_all_other_weights_stay_bit_for_bit(small, start, tmp_path, capsys):
    optim = replace(small.optim, ema_decay=0.5, part_learning_rates="decoder.conv_out=1e-7", warmup_steps=0)
    part = "encoder.conv_out,decoder.up.0,decoder.conv_out"
    config = replace(small, start_from=str(start), trainable=part, steps=2, optim=optim, eval_every=1)
    train(config, tmp_path / "run")
    printed = re.findall(r"latents against those of the start: cosine 0\.\d{5}, (.+) dB", capsys.readouterr().out)
    assert float(printed[0]) > float(printed[1]) > 0  # further with every step
    logged = [row["latent_decibels"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert logged == pytest.approx([float(number) for number in printed], abs=0.005)
    before, after = (load_weights(folder).tensors for folder in (start, tmp_path / "run" / "export"))
    assert before.keys() == after.keys()
    for name in before:
        old, new = (np.asarray(tensors[name]) for tensors in (before, after))
        assert old.dtype == new.dtype
        assert np.array_equal(old.view(np.uint8), new.view(np.uint8)) != name.startswith(PART), name
    moved = {name: np.abs(np.asarray(before[name]) - np.asarray(after[name])).max() for name in before}
    assert 0 < moved["decoder.conv_out.weight"] < 1e-3 * moved["decoder.up.0.block.0.conv1.weight"]
