"""Model folders from the Flax side."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae import PRESETS, AutoEncoder, from_pretrained, save_pretrained
from flax_vae.convert import ConversionError, FileError, expand
from flax_vae.convert.table.rows import flatten, unflatten

RECORD = dataclasses.replace(PRESETS["tiny"], time_emb_dim=6, learnable_logvar=True)


def make(dtype="float32"):
    rng = np.random.default_rng(0)
    leaves = {row.ours: jnp.asarray(rng.standard_normal(row.shape), dtype) for row in expand(RECORD)}
    return AutoEncoder(RECORD, param_dtype=jnp.dtype(dtype)), unflatten(leaves)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path, dtype):
    model, params = make(dtype)
    save_pretrained(tmp_path / "model", model, params)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    loaded, weights = from_pretrained(tmp_path / "model")
    assert loaded.params == RECORD
    assert loaded.param_dtype == jnp.dtype(dtype)
    ours, theirs = flatten(params), flatten(weights)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert isinstance(theirs[path], jax.Array)
        assert theirs[path].dtype == leaf.dtype
        assert np.asarray(theirs[path]).tobytes() == np.asarray(leaf).tobytes(), path


def test_options_reach_the_model(tmp_path):
    model, params = make()
    save_pretrained(tmp_path / "model", model, params)
    loaded, weights = from_pretrained(
        tmp_path / "model" / "model.safetensors", dtype=jnp.bfloat16, param_dtype=jnp.float16, remat="blocks"
    )
    assert (loaded.dtype, loaded.param_dtype, loaded.remat) == (jnp.bfloat16, jnp.float16, "blocks")
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype("float16")}


def test_float64_weights_are_not_shortened_silently(tmp_path):
    model, params = make()
    save_pretrained(tmp_path / "model", model, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params))
    with pytest.raises(ValueError, match="the weights are float64, which JAX turns into float32 here"):
        from_pretrained(tmp_path / "model")
    assert from_pretrained(tmp_path / "model", param_dtype=jnp.float32)[0].param_dtype == jnp.float32


def test_dtypes_of_computation_and_parameters_are_apart_and_floating(tmp_path):
    model, params = make("bfloat16")
    save_pretrained(tmp_path / "model", model, params)
    loaded, weights = from_pretrained(tmp_path / "model", dtype=jnp.bfloat16, param_dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {jnp.dtype("float32")}
    assert (loaded.dtype, loaded.param_dtype) == (jnp.bfloat16, jnp.float32)
    for wrong in (jnp.int8, jnp.float8_e4m3fn, bool):
        with pytest.raises(ValueError, match="must be one of float64, float32, float16, bfloat16"):
            from_pretrained(tmp_path / "model", param_dtype=wrong)
        with pytest.raises(ValueError, match="must be one of float64, float32, float16, bfloat16"):
            from_pretrained(tmp_path / "model", dtype=wrong)


def test_numbers_too_large_for_the_parameters_are_refused(tmp_path):
    model, params = make()
    params["decoder"]["conv_out"]["bias"] = jnp.full(3, 1e6)
    save_pretrained(tmp_path / "model", model, params)
    with pytest.raises(ConversionError, match="3 values of tensor 'decoder.conv_out.bias' are too large for float16"):
        from_pretrained(tmp_path / "model", param_dtype=jnp.float16)


def test_integers_are_no_weights(tmp_path):
    model, params = make()
    params["decoder"]["conv_out"]["bias"] = jnp.zeros(3, jnp.int8)
    with pytest.raises(ConversionError, match=r"the first is decoder/conv_out/bias \(int8\)"):
        save_pretrained(tmp_path / "model", model, params)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_without_force(tmp_path):
    model, params = make()
    save_pretrained(tmp_path / "model", model, params)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="force=True"):
        save_pretrained(tmp_path / "model", model, jax.tree.map(jnp.zeros_like, params))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    save_pretrained(tmp_path / "model", model, jax.tree.map(jnp.zeros_like, params), force=True)
    assert not np.any(from_pretrained(tmp_path / "model")[1]["decoder"]["conv_out"]["kernel"])


def test_bad_folders_are_refused(tmp_path):
    model, params = make()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ConversionError, match="1 missing"):
        save_pretrained(tmp_path / "model", model, {k: v for k, v in params.items() if k != "reg"})
    assert list(tmp_path.iterdir()) == []
    save_pretrained(tmp_path / "model", model, params)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FileError):
        from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("replacement", ["overwritten", "deleted"])
def test_parameters_do_not_depend_on_the_file(tmp_path, replacement):
    model, params = make()
    save_pretrained(tmp_path / "model", model, params)
    _, loaded = from_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    size = path.stat().st_size
    if replacement == "overwritten":
        with path.open("r+b") as file:  # in place, as no careful program does it
            file.write(b"\xff" * size)
    else:
        path.unlink()
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(flatten(loaded)[name], leaf)
