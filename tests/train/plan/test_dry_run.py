"""A run described without being run: the sizes are those of its arrays, and nothing is written."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from flax_vae.convert import expand, save_weights
from flax_vae.convert.table.identification import Weights
from flax_vae.train.build import load_start, make_components, make_state
from flax_vae.train.config.schema import GanConfig, TrainConfig
from flax_vae.train.config.yaml_text import parse_yaml
from flax_vae.train.errors import RunError
from flax_vae.train.plan.dry_run import describe_run
from flax_vae.train.run.directory import RunDirectory


@pytest.fixture(scope="module")
def whole(small):
    """With every player that a state can hold."""
    optim = replace(small.optim, ema_decay=0.5)
    return replace(small, optim=optim, gan=GanConfig(weight=1.0, features=64, layers=1))


def numbers(text):
    """The rows `name  number` of the comments."""
    rows = re.findall(r"^#   (.+?) +([\d,.]+)$", text, re.MULTILINE)
    return {name: float(value.replace(",", "")) for name, value in rows}


def mib(tree, share=1):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 2**20 / share


def test_the_text_is_the_configuration_and_writes_nothing(whole, tmp_path):
    text = describe_run(whole, tmp_path / "run")
    assert TrainConfig.from_dict(parse_yaml(text)) == whole
    assert list(tmp_path.iterdir()) == []
    assert f"3 images in {whole.data.folder}\n" in text
    assert "d.png, which is held out" in text


def test_the_numbers_are_those_of_the_state(whole, tmp_path):
    rows = numbers(describe_run(whole, tmp_path))
    state = jax.tree.map(np.asarray, make_state(whole, make_components(whole)))
    assert rows["model"] == rows["that learn"] == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert rows["discriminator"] == pytest.approx(mib(state.discriminator) + mib(state.discriminator.params), abs=0.06)
    for name, tree in {"weights": state.params, "gradients": state.params, "optimiser": state.opt_state}.items():
        assert rows[name] == pytest.approx(mib(tree), abs=0.06)
    assert rows["average"] == pytest.approx(mib(state.ema), abs=0.06)
    parts = ["weights", "gradients", "optimiser", "average", "discriminator", "images", "activations"]
    assert rows["together"] == pytest.approx(sum(rows[name] for name in parts), abs=0.05 * len(parts))


def test_shared_states_are_halved_by_two_devices(whole, tmp_path):
    plain, shared = (
        numbers(describe_run(config, tmp_path)) for config in (whole, replace(whole, parallel="mesh", zero=True))
    )
    assert shared["optimiser"] == pytest.approx(plain["optimiser"] / 2, rel=0.1)
    assert shared["average"] == pytest.approx(plain["average"] / 2, rel=0.1)
    assert shared["weights"] == plain["weights"]


def test_what_a_run_would_refuse_is_refused(whole, tmp_path):
    with pytest.raises(RunError, match="start_from='nowhere' cannot be loaded"):
        describe_run(replace(whole, start_from="nowhere"), tmp_path)
    RunDirectory(tmp_path).begin(whole)
    other = replace(whole, model=replace(whole.model, z_channels=5))
    with pytest.raises(RunError, match="another architecture"):
        describe_run(other, tmp_path)


def test_a_folder_of_diffusers_with_another_sample_size_is_a_start(small, tmp_path):
    # As FLUX.1's own, whose sample_size is 1024, is for a preset that trains at 256.
    rng = np.random.default_rng(0)
    params = replace(small.model, resolution=1024)
    tensors = {row.theirs: rng.standard_normal(row.torch_shape, np.float32) for row in expand(params)}
    save_weights(tmp_path / "vae", Weights(tensors, "flux", params), "diffusers")
    tree = load_start(replace(small, start_from=str(tmp_path / "vae")))
    assert tree is not None
    assert np.array_equal(tree["encoder"]["conv_in"]["bias"], tensors["encoder.conv_in.bias"])


def test_a_run_begun_before_says_what_changed_and_where_it_goes_on(whole, tmp_path):
    RunDirectory(tmp_path).begin(whole)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    text = describe_run(replace(whole, seed=3), tmp_path)
    assert "# changed since this run began: seed: 0 -> 3, data: unknown, because data.json is missing\n" in text
    assert f"{tmp_path / 'checkpoints' / '5'}, if it is whole" in text
