"""Whole models: every switch of the architecture, sampled with the same noise."""

import jax
import numpy as np
import pytest
import torch

import flax_vae.trace
import torch_ref.trace
from flax_vae.convert.cli.run_both import layer_differences
from tests.parity.agree import (
    TOLERANCE,
    assert_agree,
    assert_as_accurate,
    difference,
    flax_model,
    inputs,
    nchw,
    nhwc,
    predict,
    predict_torch,
    random_state_dict,
    rms_error,
    torch_model,
)
from tests.parity.cases import MODELS

pytestmark = pytest.mark.usefixtures("x64")


def both(name, precision="float64", **options):
    params = MODELS[name]
    state_dict = random_state_dict(params, precision)
    return flax_model(params, state_dict, **options), torch_model(params, state_dict), inputs(params, 12, 20, precision)


def compare_layers(flax_pair, twin, data):
    """Every layer that has weights, and how far the two frameworks are apart behind it."""
    ours = flax_vae.trace.trace(*flax_pair, *data)
    theirs = torch_ref.trace.trace(twin, *map(nchw, data))
    return layer_differences(twin.params, ours, theirs)


def assert_models_agree(flax_pair, twin, data, tolerance):
    """All outputs; a failure names the first submodule that disagrees."""
    ours, theirs = predict(*flax_pair, *data), predict_torch(twin, *data)
    try:
        for what, output in ours.items():
            assert_agree(output, theirs[what], tolerance, what)
    except AssertionError as error:
        wrong = [layer for layer in compare_layers(flax_pair, twin, data) if not layer[1] <= tolerance]
        first = f"{wrong[0][0]} ({wrong[0][1]:.3g} of its RMS)" if wrong else "none, look at what stands between them"
        raise AssertionError(f"{error}; the first submodule that disagrees is {first}") from None


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", MODELS)
def test_model_agrees(request, name, dtype):
    if dtype != "float64":
        request.getfixturevalue("optimised")
    assert_models_agree(*both(name, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["attention everywhere", "quant convolutions"])
def test_model_is_as_accurate_in_bfloat16(optimised, name):
    _, twin, data = both(name)
    truth = predict_torch(twin, *data)
    flax_pair, twin, data = both(name, jax.numpy.bfloat16)
    ours, theirs = predict(*flax_pair, *data), predict_torch(twin, *data)
    for what, output in ours.items():
        assert output.dtype == jax.numpy.bfloat16
        assert_as_accurate(output, theirs[what], truth[what], what)


def test_bfloat16_computation_over_float32_parameters(optimised):
    flax_pair, twin, data = both("sinusoidal time", "float32", dtype=jax.numpy.bfloat16)
    ours, theirs = predict(*flax_pair, *data), predict_torch(twin, *data)
    assert ours["images"].dtype == jax.numpy.bfloat16
    assert 1e-4 < rms_error(ours["images"], theirs["images"]) < 0.1  # it is bfloat16, and no worse


@pytest.mark.parametrize("remat", ["attention", "blocks"])
def test_rematerialised_model_is_the_same_model(remat):
    assert_models_agree(*both("attention everywhere", remat=remat), TOLERANCE["float64"])


def test_own_noise_is_drawn_from_the_posterior():
    (model, tree), twin, (images, _, _) = both("middle attention")
    variables = {"params": tree}
    encode = jax.jit(lambda key: model.apply(variables, images, rngs={"sample": key}, method="encode"))
    posterior = jax.jit(lambda: model.apply(variables, images, method="posterior"))()
    own = encode(jax.random.key(3))
    np.testing.assert_array_equal(own, encode(jax.random.key(3)))
    assert difference(encode(jax.random.key(4)), own) > 0.1
    scale, shift = model.params.scale_factor, model.params.shift_factor
    assert np.all(np.abs(own - scale * (posterior.mean - shift)) < 6 * scale * posterior.std)
    # The mean of 4000 draws lies within 5 standard errors of the mean, their spread within 10 % of the spread.
    draws = jax.vmap(posterior.sample)(jax.random.split(jax.random.key(0), 4000))
    assert np.all(np.abs(draws.mean(0) - posterior.mean) < 5 * posterior.std / np.sqrt(4000))
    assert np.all(np.abs(draws.std(0) / posterior.std - 1) < 0.1)
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = twin.posterior(nchw(images))
        spread = torch.stack([theirs.sample() for _ in range(4000)]).std(0)
    assert np.all(np.abs(nhwc(spread) / posterior.std - 1) < 0.1)


@pytest.mark.parametrize(
    "place", ["encoder.down.1.block.0.conv1", "encoder.mid.attn_1.q", "decoder.up.1.attn.0.norm", "decoder.conv_out"]
)
def test_a_failure_names_the_first_submodule_that_disagrees(place):
    flax_pair, twin, data = both("attention everywhere")
    with torch.no_grad():
        twin.get_submodule(place).bias.mul_(1.1)
    with pytest.raises(AssertionError, match=f"first submodule that disagrees is {place} "):
        assert_models_agree(flax_pair, twin, data, TOLERANCE["float64"])


def test_the_trace_sees_every_layer():
    flax_pair, twin, data = both("everything")
    layers = dict(compare_layers(flax_pair, twin, data))
    assert set(layers) == {key.rpartition(".")[0] for key in twin.state_dict()}
    assert max(layers.values()) < TOLERANCE["float64"]
