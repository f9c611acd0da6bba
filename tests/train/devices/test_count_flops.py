"""Operations of traced programs: of single functions, of a model, and of training steps."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from flax_vae import AutoEncoder, init_params
from flax_vae.convert import PRESETS
from flax_vae.train.build import make_components, make_state
from flax_vae.train.config.schema import DataConfig, GanConfig, OptimConfig, TrainConfig
from flax_vae.train.devices.count_flops import TracedProgram
from flax_vae.train.devices.parallel import make_parallel
from flax_vae.train.report.speed import Speed
from flax_vae.train.step import train_step
from tests.benchmarks.flops import discriminator_flops, work_flops


def count_operations(function, *args):
    return TracedProgram(function, *args).operations()


def test_products_convolutions_and_what_repeats_them_are_counted():
    a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    assert count_operations(jnp.matmul, a, b) == 2 * 3 * 5 * 7
    repeated = lambda a, b: jax.lax.scan(lambda total, _: (total + a @ b, None), jnp.zeros((3, 7)), length=11)  # noqa: E731
    assert count_operations(repeated, a, b) == 11 * 2 * 3 * 5 * 7
    either = lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 7)))  # noqa: E731
    assert count_operations(jax.jit(either), a, b) == 2 * 3 * 5 * 7
    x, kernel = jnp.zeros((2, 8, 9, 4)), jnp.zeros((3, 3, 4, 6))
    strided = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    forward = 2 * (2 * 4 * 5 * 6) * 9 * 4
    assert count_operations(strided, x, kernel) == forward
    # Its gradient by x spreads the outputs out, and the holes are not computed.
    by_x, by_kernel = 2 * (2 * 8 * 9 * 4) * 9 * 6 // 4, forward
    gradients = jax.grad(lambda x, k: (strided(x, k) ** 2).sum(), argnums=(0, 1))
    assert count_operations(gradients, x, kernel) == forward + by_x + by_kernel
    # What nobody uses is not computed: the sum's gradient needs no sum.
    assert count_operations(jax.grad(lambda k: strided(x, k).sum()), kernel) == by_kernel


def test_a_loop_of_unknown_length_is_refused():
    def until(a):
        return jax.lax.while_loop(lambda a: a[0, 0] < 1, lambda a: a @ a, a)

    with pytest.raises(ValueError, match="while loop"):
        count_operations(until, jnp.zeros((3, 3)))


@pytest.mark.parametrize("preset", ["flux1", "seed"])
def test_the_count_of_a_forward_pass_is_the_one_from_the_architecture(preset):
    record = dataclasses.replace(PRESETS[preset], time_emb_dim=None)
    model = AutoEncoder(record)
    params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    found = count_operations(lambda p, x: model.apply({"params": p}, x, sample=False), params, images)
    assert found == pytest.approx(work_flops("forward", record, 64), rel=0.01)


PX, BATCH = 32, 4
NONE, TWO_PARTS = GanConfig(), OptimConfig(accumulate=2)
ADVERSARIAL = GanConfig(weight=0.5, start=10, adaptive=False, features=64, layers=2)


@pytest.mark.parametrize(
    ("parallel", "remat", "optim", "gan"),
    [
        ("mesh", "blocks", OptimConfig(), NONE),
        ("pmap", "attention", TWO_PARTS, NONE),
        ("mesh", "none", OptimConfig(), dataclasses.replace(ADVERSARIAL, adaptive=True)),
        ("pmap", "blocks", TWO_PARTS, ADVERSARIAL),
    ],
    ids=["rematerialised", "accumulated", "adversarial", "all together"],
)
def test_the_logged_speed_is_that_of_the_architecture(parallel, remat, optim, gan, monkeypatch):
    """Compares `tflops_per_second` and `mfu` of ten updates with the count of the benchmarks."""
    record = dataclasses.replace(PRESETS["flux1"], resolution=PX, ch=32, ch_mult=(1, 2), num_res_blocks=1)
    config = TrainConfig(
        model=record, data=DataConfig(crop_size=PX), batch_size=BATCH, parallel=parallel, remat=remat, optim=optim,
        gan=gan,
    )  # fmt: skip
    devices, components = make_parallel(parallel), make_components(config)
    state = jax.eval_shape(partial(make_state, config, components))
    step = devices.compile(partial(train_step, components=components, config=config))
    count = step.count(state, devices.batch_shape(BATCH, PX), {})  # traces, and compiles nothing

    model = work_flops("training", record, PX, BATCH)
    assert count.inactive == pytest.approx(model, rel=0.05)
    classes = discriminator_flops(gan.discriminator, PX, BATCH) if gan.weight else 0
    assert count.active == pytest.approx(model + classes, rel=0.05)
    assert not classes or classes > model / 4  # it would be missed

    seconds = [0.0]
    monkeypatch.setattr("flax_vae.train.report.speed.time.monotonic", lambda: seconds[0])
    speed = Speed(BATCH, 2, 100e12, gan_start=gan.start)
    speed.begin(gan.start - 6 if gan.weight else 1)
    seconds[0] = 2.0
    speed.add(gan.start + 4 if gan.weight else 11)  # ten updates, of which four are with the discriminator
    found = speed.read(count)
    expected = (10 * model + 4 * classes) / 2.0
    assert found["images_per_second"] == 10 * BATCH / 2.0
    assert found["tflops_per_second"] == pytest.approx(expected / 1e12, rel=0.05)
    assert found["mfu"] == pytest.approx(expected / (2 * 100e12), rel=0.05)


def test_rematerialisation_counts_where_a_plan_asks():
    def step(x, kernel):
        return jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ kernel) @ kernel))(x).sum()

    x, kernel = jnp.zeros((3, 5)), jnp.zeros((5, 5))
    program, product = TracedProgram(jax.value_and_grad(step, argnums=(0, 1)), x, kernel), 2 * 3 * 5 * 5
    assert program.operations(recomputed=False) == 6 * product
    assert program.operations() > 6 * product
