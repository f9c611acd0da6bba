"""The discriminator's weights: both ways bit for bit, strictly, under LDM's names; and fresh ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flax_vae.discriminator
import torch_ref.discriminator
from flax_vae.convert import ConversionError
from flax_vae.convert.architecture.discriminator import DiscriminatorParams
from flax_vae.convert.formats.pytorch import to_array
from flax_vae.convert.table.discriminator import discriminator_to_flax, discriminator_to_torch
from flax_vae.convert.table.rows import flatten
from tests.parity.agree import quick_jit
from tests.parity.discriminators import DEEP, SMALL, random_images, random_state_dict
from torch_ref.loading import to_tensor

NORMALISED = "{c}.weight {n}.weight {n}.bias {n}.running_mean {n}.running_var {n}.num_batches_tracked"
LDM_KEYS = [
    "0.weight",
    "0.bias",
    *" ".join(NORMALISED.format(c=c, n=c + 1) for c in (2, 5, 8)).split(),
    "11.weight",
    "11.bias",
]


def test_the_keys_are_those_of_ldm():
    """As `NLayerDiscriminator()` of CompVis/taming-transformers names its 2,765,633 weights."""
    state_dict = torch_ref.discriminator.Discriminator(DiscriminatorParams()).state_dict()
    assert list(state_dict) == [f"main.{key}" for key in LDM_KEYS]
    assert sum(tensor.numel() for key, tensor in state_dict.items() if key.endswith(("weight", "bias"))) == 2_765_633


@pytest.mark.parametrize("params", [SMALL, DEEP], ids=["small", "deep"])
@pytest.mark.parametrize("prefix", ["", "loss.discriminator."])
def test_weights_go_both_ways_bit_for_bit(params, prefix):
    state_dict = random_state_dict(params, "float32", prefix)
    others = {"decoder.conv_in.bias": np.zeros(3)} if prefix else {}
    variables = discriminator_to_flax(state_dict | others, params, prefix)
    back = discriminator_to_torch(variables, params, prefix)
    assert list(back) == list(state_dict)
    for key, array in back.items():
        assert (array.dtype, array.shape) == (state_dict[key].dtype, state_dict[key].shape)
        assert array.tobytes() == state_dict[key].tobytes()
    again = flatten(discriminator_to_flax(back, params, prefix))
    for path, leaf in flatten(variables).items():
        assert leaf.flags.c_contiguous and leaf.tobytes() == again[path].tobytes() and leaf.dtype == again[path].dtype
        assert not any(np.shares_memory(leaf, array) for array in state_dict.values())


def test_one_error_lists_all_wrong_tensors():
    state_dict = random_state_dict(SMALL, prefix="loss.discriminator.")
    del state_dict["loss.discriminator.main.0.bias"]
    state_dict["loss.discriminator.main.2.bias"] = np.zeros(12)
    state_dict["loss.discriminator.main.3.weight"] = np.zeros(5)
    with pytest.raises(ConversionError) as error:
        discriminator_to_flax(state_dict, SMALL)
    for part in (
        "1 missing, 1 unexpected, 1 misshapen",
        "main.0.bias",
        "main.2.bias",
        "has shape (5,); expected (12,)",
    ):
        assert part in str(error.value)

    variables = discriminator_to_flax(random_state_dict(SMALL), SMALL, prefix="")
    del variables["params"]["main_0"]["bias"]
    variables["batch_stats"]["main_3"]["var"] = np.zeros(5)
    with pytest.raises(ConversionError, match=r"1 missing, 0 unexpected, 1 misshapen(.|\n)*params/main_0/bias"):
        discriminator_to_torch(variables, SMALL)


@pytest.mark.parametrize("count", [np.array(2**31), np.array(-1), np.array(1.0)])
def test_a_count_that_is_none_is_refused(count):
    state_dict = random_state_dict(SMALL) | {"main.3.num_batches_tracked": count}
    with pytest.raises(ConversionError, match="main_3/count is .* set it to 0"):
        discriminator_to_flax(state_dict, SMALL, prefix="")


def test_both_refuse_in_the_same_words():
    images = np.zeros((2, 12, 11, 3), np.float32)
    for message, data in {
        "12 x 11 .* needs 12 x 12 or more": images,
        "has 1 channels|have 1 channels": images[..., :1],
        "pass all 4 axes": images[0],
    }.items():
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda x: flax_vae.discriminator.Discriminator(SMALL).init(jax.random.key(0), x, True), data)
        with pytest.raises(ValueError, match=message):
            torch_ref.discriminator.Discriminator(SMALL)(to_tensor(np.moveaxis(data, -1, -3)))
    norm = flax_vae.discriminator.BatchNorm(5)
    with pytest.raises(ValueError, match="one value per channel"):
        norm.init(jax.random.key(0), jnp.zeros((1, 1, 1, 5)), True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torch_ref.discriminator.BatchNorm(5)(torch.zeros(1, 5, 1, 1))


def test_fresh_weights_have_the_sources_distributions():
    params = DiscriminatorParams(features=64, layers=1)
    model = flax_vae.discriminator.Discriminator(params)
    fresh = quick_jit(model.init, static_argnums=2)(jax.random.key(0), random_images(params, "float32"), True)
    theirs = torch_ref.discriminator.Discriminator(params).state_dict()
    theirs = discriminator_to_flax({key: to_array(tensor) for key, tensor in theirs.items()}, params, prefix="")
    ours, theirs = flatten(fresh), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert leaf.dtype == theirs[path].dtype
        if leaf.size < 32:
            continue
        for values in (np.asarray(leaf), theirs[path]):
            if path.startswith("batch_stats") or path.endswith("3/bias"):
                assert (values == (1 if path.endswith("var") else 0)).all()
            elif path.endswith("0/bias"):  # uniform between plus and minus 1 / sqrt(4 * 4 * 3)
                assert 0.08 < np.abs(values).max() < 48**-0.5
            else:
                assert abs(values.mean() - path.endswith("scale")) < 0.08 * values.size**-0.5
                assert 0.02 * (1 - 3 * values.size**-0.5) < values.std() < 0.02 * (1 + 3 * values.size**-0.5)
