"""The discriminator: logits, gradients of everything, running statistics, on one device and on two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_vae.discriminator
import torch_ref.discriminator
from flax_vae.convert.formats.pytorch import to_array
from flax_vae.convert.table.discriminator import discriminator_to_flax
from flax_vae.convert.table.rows import flatten
from flax_vae.train.losses import adversarial
from tests.flax_vae.random_models import QUICKLY
from tests.parity.agree import TOLERANCE, assert_agree, difference, nchw, nhwc, quick_jit
from tests.parity.discriminators import DEEP, SMALL, TINY, random_images, twins

pytestmark = pytest.mark.usefixtures("x64")


def pull(shape, dtype):
    """A random gradient of the logits."""
    return np.random.default_rng(6).normal(size=shape).astype(np.float32).astype(dtype)


def judge(model, variables, images, train):
    """Logits, gradients of the parameters beside the statistics after the call, and gradients of the images."""

    def objective(weights, images):
        variables_in = {"params": weights, "batch_stats": variables["batch_stats"]}
        logits, moved = model.apply(variables_in, images, train, mutable=["batch_stats"])
        return jnp.sum(pull(logits.shape, logits.dtype) * logits), (logits, moved)

    gradients, (logits, moved) = jax.grad(objective, (0, 1), has_aux=True)(variables["params"], images)
    return logits, {"params": gradients[0], **moved}, gradients[1]


def judge_torch(twin, params, images, train):
    """The same: the converter of weights converts their gradients."""
    images = nchw(images).requires_grad_(True)
    logits = twin.train(train)(images)
    logits.backward(nchw(pull(nhwc(logits).shape, to_array(logits).dtype)))
    state_dict = {key: to_array(weight.grad) for key, weight in twin.named_parameters()}
    state_dict |= {key: to_array(buffer) for key, buffer in twin.named_buffers()}
    return nhwc(logits), discriminator_to_flax(state_dict, params, prefix=""), nhwc(images.grad)


def assert_judgements_agree(params, dtype, train):
    model, variables, twin = twins(params, dtype)
    images, tolerance = random_images(params, dtype), TOLERANCE[dtype]
    # As everywhere in these tests, rounding is measured at full precision.
    with jax.default_matmul_precision("highest"):
        ours = quick_jit(judge, static_argnums=(0, 3))(model, variables, images, train)
    theirs = judge_torch(twin, params, images, train)
    assert ours[0].dtype == dtype
    assert_agree(ours[0], theirs[0], tolerance, "logits")
    assert_agree(ours[2], theirs[2], tolerance, "gradients of the images")
    leaves, expected = flatten(ours[1]), flatten(theirs[1])
    assert leaves.keys() == expected.keys()
    for path, leaf in expected.items():
        assert_agree(leaves[path], leaf, tolerance, path)
        if path.endswith("/count"):
            assert leaf == leaves[path] == (8 if train else 7)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_logits_gradients_and_statistics_agree(dtype, train):
    assert_judgements_agree(SMALL, dtype, train)


def test_many_layers_agree():
    assert_judgements_agree(DEEP, "float64", True)


def statistics_apart():
    """How far logits and running statistics are apart after a step, in units of torch's RMS."""
    model, variables, twin = twins(SMALL)
    images = random_images(SMALL)
    logits, moved = quick_jit(lambda variables: model.apply(variables, images, True, mutable=["batch_stats"]))(
        variables
    )
    expected, theirs, _ = judge_torch(twin, SMALL, images, True)
    ours, theirs = flatten(moved["batch_stats"]), flatten(theirs["batch_stats"])
    return max(difference(logits, expected), *(difference(ours[path], theirs[path]) for path in theirs))


MISTAKES = {"unbiased": lambda variance, count: variance, "MOMENTUM": 0.11, "NORM_EPS": 1e-6, "SLOPE": 0.21}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_seen(monkeypatch, name):
    monkeypatch.setattr(flax_vae.discriminator, name, MISTAKES[name])
    assert statistics_apart() >= 100 * TOLERANCE["float64"]


def test_without_a_mistake_nothing_is_seen():
    assert statistics_apart() <= TOLERANCE["float64"]


def test_two_devices_are_one():
    """Logits and statistics, and gradients of a loss and of R1, which averaged over devices are the whole batch's."""
    model, variables, _ = twins(TINY)
    images = random_images(TINY, count=4)[:, :9, :8]
    shares = images.reshape(2, 2, *images.shape[1:])

    def run(variables, images, axis_name=None):
        model = flax_vae.discriminator.Discriminator(TINY, axis_name, param_dtype="float64")

        def objective(weights):
            variables_in = {**variables, "params": weights}
            logits, moved = model.apply(variables_in, images, True, mutable=["batch_stats"])
            r1 = adversarial.r1_penalty(lambda images: model.apply(variables_in, images, True), images)
            return jnp.mean(jnp.square(logits)) + r1, (logits, moved)

        gradients, (logits, moved) = jax.grad(objective, has_aux=True)(variables["params"])
        if axis_name is not None:
            gradients = jax.lax.pmean(gradients, axis_name)
        return gradients, logits, moved

    def named(variables, images):
        return run(variables, images, "data")

    gradients, logits, moved = quick_jit(run)(variables, images)
    spread = jax.pmap(named, axis_name="data", in_axes=(None, 0)).lower(variables, shares)
    several = spread.compile(compiler_options=QUICKLY)(variables, shares)
    assert_agree(several[1].reshape(logits.shape), logits, 1e-12, "logits")
    ours, expected = (flatten({"gradients": a, **b}) for a, b in ((several[0], several[2]), (gradients, moved)))
    for path, leaf in expected.items():
        for device in range(2):
            assert_agree(ours[path][device], leaf, 1e-10, path)
    # Otherwise the axis would not matter, and nothing be shown.
    alone = quick_jit(model.apply, static_argnums=2)(variables, shares[0], True)
    assert difference(alone, logits[:2]) > 1e-3


def test_bfloat16_keeps_float32_statistics():
    _, variables, twin = twins(SMALL, "float32")
    model = flax_vae.discriminator.Discriminator(SMALL, dtype=jnp.bfloat16)
    apply = quick_jit(lambda variables, images: model.apply(variables, images, True, mutable=["batch_stats"]))
    logits, moved = apply(variables, random_images(SMALL, "float32"))
    expected = nhwc(twin.train()(nchw(random_images(SMALL, "float32"))))
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(moved)} == {"float32", "int32"}
    assert difference(logits, expected) < 0.1
    statistics = discriminator_to_flax(
        {key: to_array(tensor) for key, tensor in twin.state_dict().items()}, SMALL, prefix=""
    )["batch_stats"]
    for path, leaf in flatten(statistics).items():
        assert_agree(flatten(moved["batch_stats"])[path], leaf, 1e-2, path)


def test_the_twins_have_the_same_classes():
    ours, theirs = (
        [v.__name__ for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        for module in (flax_vae.discriminator, torch_ref.discriminator)
    )
    assert ours == theirs == ["BatchNorm", "Discriminator"]
