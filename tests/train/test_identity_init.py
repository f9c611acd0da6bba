"""Tests of identity initialisation."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import linen as nn

from flax_vae import AutoEncoder, init_params
from flax_vae.train.identity_init import group_offsets, identity_init
from tests.train.conftest import SMALL

rng = np.random.default_rng(0)


def initialised(ch):
    model = AutoEncoder(replace(SMALL, ch=ch, ch_mult=(1,)))
    before = init_params(model, jax.random.key(0))
    return before, identity_init(before, model.params)


@pytest.fixture(scope="module")
def params():
    return initialised(96)


def test_only_last_convolutions_and_output_norms_change(params):
    before, after = (jax.tree_util.tree_leaves_with_path(tree) for tree in params)
    assert [(path, leaf.shape) for path, leaf in before] == [(path, leaf.shape) for path, leaf in after]
    changed = {
        "/".join(key.key for key in path)
        for (path, ours), (_, theirs) in zip(before, after, strict=True)
        if not np.array_equal(ours, theirs)
    }
    kernels = {name for name in changed if name.endswith(("conv2/kernel", "attn_1/proj_out/kernel"))}
    assert len(kernels) == (1 + 2 + 1) + (2 + 1 + 2)
    assert changed - kernels == {
        "encoder/mid/block_2/conv2/bias", "encoder/norm_out/scale", "encoder/norm_out/bias",
        "decoder/up_0/block_1/conv2/bias", "decoder/norm_out/scale", "decoder/norm_out/bias",
    }  # fmt: skip


def end(params, half, stream):
    """Returns the output of the last norm if all blocks before it are identities."""
    block = params["encoder"]["mid"]["block_2"] if half == "encoder" else params["decoder"]["up_0"]["block_1"]
    norm = nn.GroupNorm(32, epsilon=1e-6, use_fast_variance=False)
    return norm.apply({"params": params[half]["norm_out"]}, stream + block["conv2"]["bias"].reshape(1, 1, 1, -1))


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_output_norm_keeps_contrast(params, half):
    stream = 0.2 * rng.normal(size=(1, 8, 8, 96)).astype(np.float32)
    # A constant that is orthogonal, within a group, to the mean and to the offsets.
    brightness = np.tile(np.float32([0.5, -1.0, 0.5]), 32).reshape(1, 1, 1, 96)

    def passed(params, amount):
        change = end(params, half, stream + amount * brightness) - end(params, half, stream)
        return float(np.mean(change * brightness) / (amount * np.mean(brightness**2)))

    before, after = params
    assert [passed(after, amount) for amount in (0.25, 1.0)] == pytest.approx([1.0, 1.0], abs=0.1)
    assert passed(before, 0.25) > 2 * passed(before, 1.0)  # a norm without the offsets removes most of it

    details = stream - stream.mean((1, 2), keepdims=True)
    seen = np.asarray(end(after, half, stream))
    seen = seen - seen.mean((1, 2), keepdims=True)
    assert np.corrcoef(details.ravel(), seen.ravel())[0, 1] > 0.98


def test_one_channel_per_group_keeps_the_norms():
    before, after = initialised(32)
    assert not group_offsets(32).any()
    np.testing.assert_array_equal(after["decoder"]["norm_out"]["scale"], before["decoder"]["norm_out"]["scale"])


@pytest.mark.parametrize("channels", [64, 96, 128, 512])
def test_offsets_have_mean_zero_in_each_group(channels):
    offsets = group_offsets(channels).reshape(32, -1)
    np.testing.assert_allclose(offsets.mean(axis=1), 0, atol=1e-6)
    assert (offsets.std(axis=1) > 10).all()
