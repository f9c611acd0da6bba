"""Every way to compute agrees with PyTorch, forced where a small model would not choose it."""

import pytest

from flax_vae import attention
from flax_vae.ops.attention_tiles import Tile
from flax_vae.ops.cpu import kernel_gradient
from tests.parity.cases import MODELS
from tests.parity.test_gradients import assert_gradients_agree

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("path", ["full", "tiles"])
def test_values_and_gradients_agree(monkeypatch, path):
    # Tiles and bands that divide neither the positions nor the rows.
    monkeypatch.setattr(attention, "CPU_TILE", Tile(queries=5, keys=4))
    monkeypatch.setattr(kernel_gradient, "BAND_POSITIONS", 9)
    assert_gradients_agree(MODELS["attention everywhere"], attention=path)
