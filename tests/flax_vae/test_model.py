"""The Flax model by itself: what it makes, what it refuses, what it accepts."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae import (
    PRESETS,
    AutoEncoder,
    Downsample,
    Numerics,
    Posterior,
    ResnetBlock,
    from_pretrained,
    init_params,
    to_nnx,
)
from flax_vae.convert import expand
from flax_vae.convert.table.rows import COUNTER, flatten

TINY = PRESETS["tiny"]
SMALL = replace(TINY, ch_mult=(1,), attn_levels=())  # compiles in a moment
TIMED = replace(TINY, time_emb_dim=6)
SINUSOIDAL = replace(TIMED, time_embedding="sinusoidal")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_table_is_the_models_own_tree(preset):
    model = AutoEncoder(PRESETS[preset])
    tree = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    assert {path: leaf.shape for path, leaf in flatten(tree).items()} == {
        row.ours: row.shape for row in expand(PRESETS[preset]) if row.ours != COUNTER
    }


@pytest.mark.parametrize("remat", ["none", "attention", "blocks"])
def test_the_tree_does_not_depend_on_rematerialisation(remat):
    model = AutoEncoder(PRESETS["seed"], remat=remat)
    tree = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    assert flatten(tree).keys() == {row.ours for row in expand(PRESETS["seed"])}


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_parameters_have_the_dtype_that_was_asked_for(param_dtype):
    model = AutoEncoder(replace(TIMED, learnable_logvar=True, quant_conv=True), param_dtype=param_dtype)
    tree = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype(param_dtype)}


@pytest.fixture(scope="module")
def tiny():
    model = AutoEncoder(replace(TINY, num_res_blocks=1, ch_mult=(1, 1, 2)))
    return model, {"params": init_params(model, jax.random.key(0))}


IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)


def test_public_calls(tiny):
    model, variables = tiny
    key = jax.random.key(1)
    z = model.apply(variables, IMAGES, sample=False, method="encode")
    assert z.shape == (2, 2, 3, TINY.z_channels)
    assert model.apply(variables, z, method="decode").shape == IMAGES.shape
    posterior = model.apply(variables, IMAGES, method="posterior")
    np.testing.assert_allclose(TINY.scale_factor * (posterior.mode() - TINY.shift_factor), z, atol=1e-6)
    assert posterior.kl().shape == (2,)
    assert np.all(posterior.kl() >= 0)
    noise = jax.random.normal(key, z.shape)
    np.testing.assert_allclose(posterior.sample(key), posterior.sample(noise=noise))
    np.testing.assert_array_equal(
        model.apply(variables, IMAGES, rngs={"sample": key}), model.apply(variables, IMAGES, rngs={"sample": key})
    )
    assert jax.jit(lambda v, x: model.apply(v, x, method="posterior"))(variables, IMAGES).std.shape == z.shape


def test_init_as_flax_users_write_it():
    params = AutoEncoder(SMALL).init(jax.random.key(0), IMAGES[:1])["params"]
    assert flatten(params).keys() == {row.ours for row in expand(SMALL)}


def call(model, *arguments, **options):
    """Raises what the call would raise, without computing anything."""

    def run():
        variables = {"params": init_params(model, jax.random.key(0))}
        return model.apply(variables, *arguments, **options)

    return jax.eval_shape(run)


@pytest.mark.parametrize(
    ("record", "arguments", "options", "message"),
    [
        (TINY, [np.zeros((1, 10, 8, 3))], {"sample": False}, "10 x 8 .* multiples of 4; pad them to 12 x 8"),
        (TINY, [np.zeros((1, 8, 8, 4))], {"sample": False}, "have 4 channels as 'b h w c'; expected 3"),
        (TINY, [np.zeros((8, 8, 3))], {"sample": False}, "pass all 4 axes"),
        (TINY, [np.zeros((1, 2, 2, 3))], {"method": "decode"}, "channels as .*; expected"),
        (TINY, [np.zeros((1, 8, 8, 3))], {}, 'pass rngs={"sample": key}'),
        (TINY, [np.zeros((1, 8, 8, 3)), np.zeros((1, 6))], {"sample": False}, "has no time embedding"),
        (TINY, [np.zeros((1, 8, 8, 3))], {"noise": np.zeros((1, 2, 1, 8)), "method": "encode"}, "must be equal"),
        (TINY, [np.zeros((1, 8, 8, 3))], {"noise": np.zeros((1, 2, 2, 8)), "sample": False}, "does not sample"),
        (TIMED, [np.zeros((1, 8, 8, 3))], {"sample": False}, r"pass time of shape \(1, 6\)"),
        (TIMED, [np.zeros((1, 8, 8, 3)), np.zeros(1)], {"sample": False}, r"expects \(1, 6\)"),
        (SINUSOIDAL, [np.zeros((1, 8, 8, 3)), np.zeros((1, 6))], {"sample": False}, r"expects \(1,\)"),
        (
            SINUSOIDAL,
            [np.zeros((1, 8, 8, 3)), np.zeros(1, int)],
            {"sample": False},
            "times are int64; expected float64",
        ),
        (TINY, [np.zeros((1, 8, 8, 3), np.uint8)], {"sample": False}, "images are uint8; .* / 127.5 - 1"),
        (TINY, [np.zeros((1, 8, 8, 3), np.uint8)], {"sample": False, "method": "encode"}, "images are uint8"),
        (TINY, [np.zeros((1, 8, 8, 3), np.uint8)], {"method": "posterior"}, "images are uint8"),
        (TINY, [np.zeros((1, 2, 2, 16), np.uint8)], {"method": "decode"}, "latents are uint8; .* cast them to float32"),
        (TINY, [np.zeros((0, 8, 8, 3))], {"sample": False}, r"images have shape \(0, 8, 8, 3\); .* skip empty batches"),
        (TINY, [np.zeros((0, 8, 8, 3))], {"method": "posterior"}, r"images have shape \(0, 8, 8, 3\)"),
        (TINY, [np.zeros((0, 2, 2, 16))], {"method": "decode"}, r"latents have shape \(0, 2, 2, 16\)"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(record, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        call(AutoEncoder(record), *arguments, **options)


def test_single_blocks_refuse_too():
    x = np.zeros((1, 2, 2, 32), np.float32)
    for block, arguments, message in [
        (ResnetBlock(32, 32, 5), [x], "pass time_emb"),
        (ResnetBlock(32, 32), [x, np.zeros((1, 5))], "has no time_mlp"),
        (ResnetBlock(32, 32, 5), [x, np.zeros((1, 4))], r"expected \(b, 5\)"),
        (Downsample(32, "SAME"), [x], "'SAME' must be 'symmetric'"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda block=block, arguments=arguments: block.init(jax.random.key(0), *arguments))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remat": "all"}, "remat='all' must be one of 'none', 'attention', 'blocks'"),
        ({"attention": "flash"}, "attention='flash' must be one of 'auto', 'full', 'tiles', 'cudnn'"),
        ({"dtype": jnp.int8}, "dtype='int8' must be one of float64, float32, float16, bfloat16"),
        ({"dtype": "bf16"}, "dtype='bf16' must be one of float64"),
        ({"param_dtype": jnp.float8_e4m3fn}, "param_dtype='float8_e4m3fn' must be one of float64"),
        ({"param_dtype": None}, "param_dtype='None' must be one of float64"),
    ],
)
def test_unknown_numerics_are_refused_where_they_are_given(tmp_path, options, message):
    for give in (Numerics, partial(AutoEncoder, TINY), AutoEncoder(TINY).clone):
        with pytest.raises(ValueError, match=message):
            give(**options)
    if options != {"param_dtype": None}:  # which keeps that of the file
        with pytest.raises(ValueError, match=message):
            from_pretrained(tmp_path / "is not read", **options)


def test_numerics_are_those_of_the_model():
    model = AutoEncoder(TINY, dtype=jnp.bfloat16, remat="blocks", attention="tiles")
    assert model.numerics == Numerics(jnp.bfloat16, jnp.float32, "blocks", "tiles")
    bound = model.bind({"params": init_params(model, jax.random.key(0))})
    assert bound.encoder.numerics == bound.decoder.mid.numerics == bound.decoder.up[0].numerics == model.numerics


def test_a_posterior_needs_one_source_of_noise(tiny):
    model, variables = tiny
    posterior = model.apply(variables, IMAGES, method="posterior")
    for arguments in ({}, {"key": jax.random.key(0), "noise": posterior.mean}):
        with pytest.raises(ValueError, match="exactly one of them"):
            posterior.sample(**arguments)


@pytest.mark.parametrize("record", [SMALL, replace(SMALL, time_emb_dim=6)], ids=["without time", "with time"])
def test_nnx_module_gives_equal_outputs_and_gradients(record):
    from flax import nnx

    model = AutoEncoder(record)
    params = init_params(model, jax.random.key(0))
    module = to_nnx(model, params)
    time = () if record.time_emb_dim is None else (np.ones((2, record.time_emb_dim), np.float32),)

    def loss(apply):
        return jnp.mean((apply(IMAGES, *time, sample=False) - IMAGES) ** 2)

    ours, gradients = jax.jit(
        jax.value_and_grad(lambda params: loss(lambda *a, **k: model.apply({"params": params}, *a, **k)))
    )(params)
    theirs, their_gradients = nnx.jit(nnx.value_and_grad(loss))(module)
    np.testing.assert_array_equal(ours, theirs)
    their_gradients = {k: v for k, v in nnx.to_pure_dict(nnx.state(their_gradients)).items() if k != "rngs"}
    jax.tree.map(np.testing.assert_array_equal, gradients, their_gradients)

    first, second = (module(IMAGES, *time, method="encode") for _ in range(2))
    assert np.any(first != second)  # its own stream of noise
    assert module(first, *time, method="decode").shape == IMAGES.shape


def test_highest_precision_is_the_same_function(tiny):
    model, variables = tiny

    def run(variables, images):
        return model.apply(variables, images, sample=False)

    ordinary = jax.jit(run)(variables, IMAGES)
    with jax.default_matmul_precision("highest"):
        precise = jax.jit(run)(variables, IMAGES)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        truth = np.asarray(jax.jit(run)(wide, IMAGES.astype(np.float64)))
    assert truth.dtype == np.float64
    assert np.any(ordinary != precise)
    np.testing.assert_allclose(ordinary, truth, atol=1e-5)
    np.testing.assert_allclose(precise, truth, atol=1e-5)


def test_half_precision_draws_from_more_than_a_few_numbers():
    zeros = jnp.zeros((1, 64, 64, 16), jnp.bfloat16)
    drawn = Posterior(zeros, zeros).sample(jax.random.key(0))
    assert drawn.dtype == jnp.bfloat16
    assert len(np.unique(np.asarray(drawn, np.float32))) > 1_000
    assert abs(np.asarray(drawn, np.float32).mean()) < 0.01
