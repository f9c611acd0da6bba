"""Gradients in bfloat16: for each kind of parameter no further from float64's than 1.5 times PyTorch's.

Of models with few channels; `python -m tests.benchmarks.half_precision` has the published ones and prints all leaves.
"""

from dataclasses import replace

import pytest

from flax_vae.convert.architecture.discriminator import DiscriminatorParams
from tests.benchmarks.half_precision import ALLOWED, autoencoder, discriminator, kinds
from tests.parity.cases import MODELS

SMALL = replace(MODELS["quant convolutions"], time_emb_dim=10, learnable_logvar=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "leaves",
    [
        pytest.param(lambda: autoencoder(SMALL, (32, 32), draws=4), id="autoencoder"),
        pytest.param(lambda: discriminator(DiscriminatorParams(features=16), draws=4), id="discriminator"),
    ],
)
def test_gradients_in_bfloat16_are_as_accurate_as_torchs(leaves, optimised):
    ratios = kinds(leaves())
    assert len(ratios) >= 3
    assert {kind: round(ratio, 2) for kind, ratio in ratios.items() if not ratio <= ALLOWED} == {}
