"""Tests of the patterns that select weights."""

import pytest

from flax_vae.convert import PRESETS
from flax_vae.convert.table import expand
from flax_vae.train.config import changes_latents, trained_paths
from flax_vae.train.config.parts import part_rates

PATHS = {row.ours for row in expand(PRESETS["sd1"])}


@pytest.mark.parametrize(
    ("trainable", "beginnings"),
    [
        ("all", ("",)),
        ("decoder", ("decoder/", "post_quant_conv/")),
        ("decoder.up.0, decoder.conv_out", ("decoder/up_0/", "decoder/conv_out/")),
        ("decoder.up.?.upsample,encoder.conv_in.bias", ("decoder/up_1/ups", "decoder/up_2/ups", "decoder/up_3/ups",
                                                        "encoder/conv_in/bias")),
    ],
)  # fmt: skip
def test_patterns_select_weights_and_modules(trainable, beginnings):
    assert trained_paths(PRESETS["sd1"], trainable) == {path for path in PATHS if path.startswith(beginnings)}


def test_statistics_of_the_latents_are_not_trained():
    paths = {row.ours for row in expand(PRESETS["flux2"])}
    assert paths - trained_paths(PRESETS["flux2"], "all") == {path for path in paths if path.startswith("bn/")}


def test_the_last_pattern_decides_the_rate():
    rates = part_rates(PRESETS["sd1"], "decoder.mid=2e-5,decoder.mid.attn_1.*=1e-6")
    assert {rate for path, rate in rates.items() if "attn_1" in path} == {1e-6}
    assert {rate for path, rate in rates.items() if "attn_1" not in path} == {2e-5}
    assert all(path.startswith("decoder/mid/") for path in rates)


def test_what_changes_the_latents():
    changes = {name: changes_latents(trained_paths(PRESETS["sd1"], name)) for name in ("all", "decoder", "quant_conv")}
    assert changes == {"all": True, "decoder": False, "quant_conv": True}
