"""The export of a run equals its last checkpoint."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from flax_vae import from_pretrained
from flax_vae.convert.cli.main import main as convert
from flax_vae.convert.formats.safetensors import read_tensors
from flax_vae.convert.weights.save import DIFFUSERS_WEIGHTS
from flax_vae.train.build import load_start
from flax_vae.train.loop import train


@pytest.fixture(scope="module", params=[0.9, 0.0], ids=["average", "no average"])
def run(small, request, tmp_path_factory):
    """Returns the directory and the last state of a run of four steps."""
    workdir = tmp_path_factory.mktemp("run")
    optim = replace(small.optim, ema_decay=request.param)
    config = replace(small, optim=optim, steps=4, save_every=2, log_every=2)
    return workdir, config, train(config, workdir).state


@pytest.mark.slow
def test_a_checkpoint_converted_for_diffusers_equals_the_export_bit_for_bit(run, tmp_path):
    workdir, _, _ = run
    sources = {"checkpoint": workdir / "checkpoints" / "4", "export": workdir / "export", "run": workdir}
    for name, source in sources.items():
        assert convert([str(source), str(tmp_path / name), "--to", "diffusers"]) == 0
    files = [(tmp_path / name / DIFFUSERS_WEIGHTS).read_bytes() for name in sources]
    assert files[0] == files[1] == files[2]
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in sources]
    assert configs[0] == configs[1] == configs[2]
    assert len(read_tensors(tmp_path / "checkpoint" / DIFFUSERS_WEIGHTS)) > 50


def test_raw_weights_are_the_last_update_s(run, tmp_path):
    workdir, config, state = run
    step = workdir / "checkpoints" / "4"
    expected = {False: jax.device_get(state.eval_params()), True: jax.device_get(state.params)}
    for raw, tree in expected.items():
        _, found = from_pretrained(step, raw_weights=raw)
        begun = load_start(replace(config, start_from=str(step), raw_weights=raw, identity_init=False))
        for read in (found, begun):
            assert jax.tree.structure(read) == jax.tree.structure(tree)
            assert all(jax.tree.leaves(jax.tree.map(np.array_equal, jax.device_get(read), tree)))
    differ = jax.tree.map(lambda a, b: not np.array_equal(a, b), *expected.values())
    assert any(jax.tree.leaves(differ)) == (state.ema is not None)
