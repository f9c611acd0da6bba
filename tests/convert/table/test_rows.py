"""The table of weights: complete, one to one, invertible, strict; no framework needed for any of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flax_vae.convert import LAYOUTS, PRESETS, AutoEncoderParams, ConversionError, expand, to_flax, to_torch
from flax_vae.convert.table.ops import CONV, LINEAR, SAME
from flax_vae.convert.table.rows import flatten, unflatten

TINY = PRESETS["tiny"]

COUNTS = {  # tensors, parameters; the first four are those of the published files
    "flux1": (244, 83_819_683),
    "sd3": (244, 83_819_683),
    "sd1": (248, 83_653_863),
    "sdxl": (248, 83_653_863),
    "flux2": (251, 84_046_115),  # three of them the statistics of a batch norm, which are not learned
    "seed-flux": (444, 95_986_083),
    "seed": (390, 15_895_523),
}


def random_state_dict(params, layout="flux", dtype=np.float32):
    rng = np.random.default_rng(0)
    return {row.theirs: rng.standard_normal(row.torch_shape).astype(dtype) for row in expand(params, layout)}


@pytest.mark.parametrize(("preset", "tensors", "parameters"), [(name, *counts) for name, counts in COUNTS.items()])
def test_counts_of_published_models(preset, tensors, parameters):
    rows = expand(PRESETS[preset])
    assert len(rows) == tensors
    learned = [row for row in rows if not row.ours.startswith("bn/")]
    assert len(rows) - len(learned) == (3 if preset == "flux2" else 0)
    assert sum(int(np.prod(row.shape)) for row in learned) == parameters


@st.composite
def architectures(draw):
    levels = draw(st.integers(1, 4))
    time = draw(st.sampled_from([None, 3, 8]))
    return AutoEncoderParams(
        resolution=2**levels * draw(st.integers(1, 5)),
        in_channels=draw(st.integers(1, 4)),
        ch=32 * draw(st.integers(1, 3)),
        out_ch=draw(st.integers(1, 4)),
        ch_mult=draw(st.lists(st.integers(1, 3), min_size=levels, max_size=levels)),
        num_res_blocks=draw(st.integers(1, 3)),
        z_channels=draw(st.integers(1, 5)),
        scale_factor=1.0,
        shift_factor=0.0,
        time_emb_dim=time,
        attn_levels=draw(st.one_of(st.none(), st.sets(st.integers(0, levels - 1)).map(tuple))),
        downsample_padding=draw(st.sampled_from(["symmetric", "asymmetric"])),
        quant_conv=draw(st.booleans()),
        learnable_logvar=draw(st.booleans()),
        time_embedding="sinusoidal" if time == 8 and draw(st.booleans()) else "linear",
    )


@given(architectures())
def test_names_are_unique_on_both_sides(params):
    rows = expand(params, "flux")
    assert len({row.ours for row in rows}) == len({row.theirs for row in rows}) == len(rows)


@given(architectures())
def test_a_record_survives_json(params):
    assert AutoEncoderParams.from_dict(params.to_dict()) == params


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_both_ways_round_are_bit_exact(layout, dtype):
    import ml_dtypes

    dtype = {"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype)
    state_dict = random_state_dict(TINY, layout, dtype)
    tree = to_flax(state_dict, TINY, layout)
    back = to_torch(tree, TINY, layout)
    assert list(back) == [row.theirs for row in expand(TINY, layout)]
    for key, array in state_dict.items():
        assert back[key].dtype == array.dtype
        assert back[key].tobytes() == array.tobytes(), key
    again = to_flax(back, TINY, layout)
    for path, leaf in flatten(tree).items():
        assert np.array_equal(flatten(again)[path].view(np.uint8 if leaf.ndim == 0 else leaf.dtype), leaf)


@pytest.mark.parametrize("op", [SAME, CONV, LINEAR], ids=lambda op: op.name)
def test_an_operation_knows_its_inverse(op):
    rank = 3 if op.axes is None else len(op.axes)
    theirs = np.arange(np.prod(range(2, 2 + rank))).reshape(range(2, 2 + rank))  # every axis of another length
    ours = op.to_flax(theirs)
    assert op.torch_shape(ours.shape) == theirs.shape
    np.testing.assert_array_equal(op.to_torch(ours), theirs)


def test_a_convolution_is_transposed_as_its_name_says():
    oihw = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    hwio = CONV.to_flax(oihw)
    assert hwio.shape == (5, 7, 3, 2)
    assert hwio[4, 6, 2, 1] == oihw[1, 2, 4, 6]


def test_a_name_as_the_document_writes_it():
    names = {row.theirs: row.ours for row in expand(PRESETS["seed"])}
    assert names["encoder.down.0.block.1.norm1.weight"] == "encoder/down_0/block_1/norm1/scale"
    assert names["decoder.mid.block_1.time_mlp.weight"] == "decoder/mid/block_1/time_mlp/kernel"
    assert names["decoder.up.2.attn.0.proj_out.bias"] == "decoder/up_2/attn_0/proj_out/bias"


def test_everything_wrong_is_listed_in_one_error():
    state_dict = random_state_dict(TINY)
    del state_dict["encoder.conv_in.bias"]
    state_dict["decoder.surprise"] = np.zeros(3, np.float32)
    state_dict["decoder.conv_out.weight"] = state_dict["decoder.conv_out.weight"][:, :-1]
    with pytest.raises(ConversionError) as caught:
        to_flax(state_dict, TINY)
    message = str(caught.value)
    assert "1 missing, 1 unexpected, 1 misshapen" in message
    for part in (
        f"encoder.conv_in.bias ({TINY.ch},)",
        "decoder.surprise (3,)",
        f"expected (3, {TINY.widths[0]}, 3, 3)",
    ):
        assert part in message
    with pytest.raises(ConversionError, match="1 missing, 0 unexpected, 0 misshapen"):
        tree = to_flax(random_state_dict(TINY), TINY)
        del tree["decoder"]["conv_out"]["bias"]
        to_torch(tree, TINY)


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(ConversionError, match="check that the architecture"):
        to_flax(random_state_dict(TINY), PRESETS["flux1"])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "complex64"])
def test_integers_are_no_weights(dtype):
    message = rf"^1 of {len(expand(TINY))} weights are not floating-point, the first is .*conv_out.* \({dtype}\); "
    state_dict = random_state_dict(TINY)
    state_dict["decoder.conv_out.bias"] = np.zeros(3, dtype)
    with pytest.raises(ConversionError, match=message):
        to_flax(state_dict, TINY)
    tree = to_flax(random_state_dict(TINY), TINY)
    tree["decoder"]["conv_out"]["bias"] = np.zeros(3, dtype)
    with pytest.raises(ConversionError, match=message):
        to_torch(tree, TINY)


def test_the_count_of_batches_is_an_integer():
    state_dict = random_state_dict(PRESETS["flux2"]) | {"bn.num_batches_tracked": np.array(7)}
    assert "num_batches_tracked" not in to_flax(state_dict, PRESETS["flux2"])["bn"]


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="unknown layout 'keras'; expected one of flux"):
        expand(TINY, "keras")


def test_nested_and_flat_are_inverse():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree
