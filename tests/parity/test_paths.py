"""Every way to compute agrees with PyTorch, forced where a small model would not choose it."""

import jax
import pytest

from convert import to_flax
from convert.pickles import to_array
from flax_vae import attention, kernel_gradient
from flax_vae.tiled_attention import Tile
from tests.parity._agree import TOLERANCE, flax_model, nchw, random_state_dict, torch_model
from tests.parity._cases import MODELS
from tests.parity.test_gradients import assert_trees_agree, loss, small_inputs, torch_loss

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("path", ["full", "tiles"])
def test_values_and_gradients_agree(monkeypatch, path):
    # Tiles and bands that divide neither the positions nor the rows.
    monkeypatch.setattr(attention, "CPU_TILE", Tile(queries=5, keys=4))
    monkeypatch.setattr(kernel_gradient, "BAND_POSITIONS", (9, 9))
    params = MODELS["attention everywhere"]
    state_dict = random_state_dict(params)
    model, tree = flax_model(params, state_dict, attention=path)
    twin = torch_model(params, state_dict).requires_grad_(True)
    images, time, noise = small_inputs(params)

    value, gradients = jax.jit(jax.value_and_grad(lambda tree: loss(model, tree, images, time, noise)))(tree)
    their_value = torch_loss(twin, nchw(images), nchw(time), nchw(noise))
    their_value.backward()

    assert abs(value - their_value.item()) <= 1e-10 * abs(their_value.item())
    theirs = to_flax({key: to_array(weight.grad) for key, weight in twin.named_parameters()}, params, "flux")
    assert_trees_agree(gradients, theirs, TOLERANCE["float64"])
