import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.convert import PRESETS, expand, to_torch
from flax_vae.convert.errors import FileError
from flax_vae.convert.table.rows import flatten, unflatten
from flax_vae.convert.weights.orbax_steps import list_step_folders, read_step, read_weights
from flax_vae.train.config.schema import TrainConfig
from flax_vae.train.run.checkpoints import Checkpoints
from flax_vae.train.run.manifest import write_manifest

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def params() -> dict:
    rng = np.random.default_rng(0)
    found = unflatten({row.ours: jnp.asarray(rng.standard_normal(row.shape, np.float32)) for row in expand(TINY)})
    found["decoder"]["conv_in"]["bias"] = jnp.arange(TINY.widths[-1], dtype=jnp.bfloat16)
    found["decoder"]["conv_out"]["bias"] = jnp.zeros(3)  # a whole chunk of the fill value
    return found


@pytest.fixture(scope="module")
def checkpoints(params, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "check points %41"
    with Checkpoints(folder) as manager:
        for step in (5, 10):
            state = {"step": jnp.array(step), "params": params, "opt_state": (params, None)}
            manager.save(step, state, TrainConfig(TINY), wait=True)
    return folder


@pytest.fixture
def step(checkpoints, tmp_path) -> Path:
    return Path(shutil.copytree(checkpoints / "10", tmp_path / "10"))


def test_parameters_return_bit_for_bit(checkpoints, params):
    config, found = read_step(checkpoints / "5")
    expected = flatten(jax.device_get(params))
    assert config == TINY
    assert list(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        assert np.asarray(found[name]).tobytes() == array.tobytes(), name
    state_dict = to_torch(unflatten(found), TINY)
    assert state_dict["encoder.conv_in.weight"].shape == (32, 3, 3, 3)


def test_other_parts_of_the_state_can_be_asked_for(checkpoints, params):
    _, found = read_step(checkpoints / "5", tree="opt_state")
    assert set(found) == {f"0/{name}" for name in flatten(params)}
    with pytest.raises(FileError, match="5 has no 'ema'; expected one of opt_state, params, step"):
        read_step(checkpoints / "5", tree="ema")


def test_steps_are_found_in_order(checkpoints):
    assert [step.name for step in list_step_folders(checkpoints)] == ["5", "10"]
    assert list_step_folders(checkpoints / "5") == []


def test_neither_jax_nor_orbax_is_loaded(checkpoints):
    code = (
        "import sys, numpy; from flax_vae.convert.weights.orbax_steps import read_step\n"
        "_, found = read_step(sys.argv[1])\n"
        "assert all(numpy.asarray(array).shape == array.shape for array in found.values())\n"
        "assert not {'jax', 'flax', 'orbax', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, checkpoints / "5"], check=True)


def test_what_is_no_step_is_refused(checkpoints, step, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent does not exist; give the folder of one step"):
        read_step(tmp_path / "absent")
    with pytest.raises(
        FileError, match="is not a complete checkpoint of a training run: it holds no _CHECKPOINT_METADATA"
    ):
        read_step(checkpoints)
    unfinished = step.rename(tmp_path / "10.orbax-checkpoint-tmp")
    with pytest.raises(FileError, match="is not a complete checkpoint"):
        read_step(unfinished)


@pytest.mark.parametrize("name", ["config/metadata", "state/_METADATA"])
@pytest.mark.parametrize(
    ("content", "complaint"),
    [(None, "is missing"), (b"{", "cannot be parsed"), (b"[]", "it holds a list"), (b"{}", "does not describe")],
)
def test_damaged_descriptions_are_refused(step, name, content, complaint):
    (step / name).unlink()
    if content is not None:
        (step / name).write_bytes(content)
    with pytest.raises(FileError, match=f"{name.split('/')[-1]} .*{complaint}|{complaint}"):
        read_step(step, verify=False)
    with pytest.raises(FileError, match=f"10 is damaged: {name} (is missing|has changed); take another step"):
        read_step(step)


def test_another_architecture_in_the_configuration_is_refused(step):
    fields = json.loads((step / "config" / "metadata").read_text())
    fields["model"]["ch"] = 33
    (step / "config" / "metadata").write_text(json.dumps(fields))
    with pytest.raises(FileError, match="does not describe a training run: .*make ch a multiple of 32"):
        read_step(step, verify=False)


def test_lost_or_shortened_data_are_noticed(step):
    files = [path for path in (step / "state").rglob("*") if path.is_file() and path.parent.name == "d"]
    assert files
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="10 is damaged: .* cannot be read"):
        for array in read_step(step, verify=False)[1].values():
            np.asarray(array)
    for path in files:
        path.unlink()
    with pytest.raises(FileError, match="10 is damaged: .* cannot be read"):
        for array in read_step(step, verify=False)[1].values():
            np.asarray(array)


def test_a_step_without_a_manifest_or_under_another_number_is_refused(step, tmp_path):
    renamed = step.rename(tmp_path / "11")
    with pytest.raises(FileError, match="11 is damaged: its manifest.json is that of step 10: the folder was"):
        read_step(renamed)
    kept = renamed.rename(tmp_path / "the-best")
    assert read_step(kept)[0] == TINY
    (kept / "manifest.json").unlink()
    with pytest.raises(FileError, match="the-best cannot be verified: it has no manifest.json.* accept this one"):
        read_step(kept)
    assert read_step(kept, verify=False)[0] == TINY
    write_manifest(kept)
    assert read_step(kept)[0] == TINY


def test_the_moving_average_is_read_unless_the_raw_weights_are_asked_for(params, tmp_path):
    decoder = jax.tree.map(lambda leaf: leaf + 1, params["decoder"])  # only the decoder learned
    lost = {**decoder, "conv_in": {"bias": decoder["conv_in"]["bias"]}}
    with Checkpoints(tmp_path, keep=3) as manager:
        for step, ema in enumerate((None, {"decoder": decoder}, {"decoder": lost}), 1):
            state = {"params": params, "ema": ema, "discriminator": {"params": params, "ema": params}}
            manager.save(step, state, TrainConfig(TINY), wait=True)
    raw, averaged = (flatten(jax.device_get({**params, **part})) for part in ({}, {"decoder": decoder}))
    for step, asked, expected, said in ((1, False, raw, None), (2, False, averaged, True), (2, True, raw, False)):
        config, found, which = read_weights(tmp_path / str(step), raw_weights=asked)
        assert (config, which) == (TINY, said)
        assert found.keys() == expected.keys()
        assert all(np.asarray(found[name]).tobytes() == array.tobytes() for name, array in expected.items())
    with pytest.raises(FileError, match="3: the moving average lacks 1 weights, such as decoder/conv_in/kernel"):
        read_weights(tmp_path / "3")
    assert read_weights(tmp_path / "3", raw_weights=True).averaged is False
