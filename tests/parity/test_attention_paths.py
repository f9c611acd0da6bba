"""Every way to compute agrees with PyTorch, forced where a small model would not choose it."""

import pytest

from flax_vae import attention
from flax_vae.ops import upsampling
from flax_vae.ops.attention_tiles import Tile
from flax_vae.ops.cpu import kernel_gradient
from tests.parity.cases import MODELS
from tests.parity.test_gradients import assert_gradients_agree

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(("path", "platform"), [("full", "cuda"), ("tiles", "tpu")])
def test_values_and_gradients_agree(monkeypatch, path, platform):
    # Tiles and bands that divide neither the positions nor the rows.
    monkeypatch.setattr(attention, "CPU_TILE", Tile(queries=5, keys=4))
    monkeypatch.setattr(kernel_gradient, "BAND_POSITIONS", 9)
    monkeypatch.setitem(upsampling.WAYS, "cpu", upsampling.WAYS[platform])
    assert_gradients_agree(MODELS["attention everywhere"], attention=path)
