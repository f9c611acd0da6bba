"""The discriminator: logits, gradients and running statistics, its weights both ways, and the adversarial formulas."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import flax_vae.discriminator
import torch_ref.discriminator
from convert import ConversionError
from convert.discriminator import DiscriminatorParams, discriminator_to_flax, discriminator_to_torch
from convert.pickles import to_array
from convert.table import flatten
from tests.parity._agree import TOLERANCE, assert_agree, difference, nchw, nhwc
from torch_ref.loading import to_tensor
from train import adversarial

pytestmark = pytest.mark.usefixtures("x64")

SMALL = DiscriminatorParams(in_channels=3, features=6, layers=2)
DEEP = DiscriminatorParams(in_channels=1, features=2, layers=4)  # its last two widths are equal
TINY = DiscriminatorParams(in_channels=1, features=2, layers=1)
HEIGHT, WIDTH = 19, 26


def random_state_dict(params, dtype="float64", prefix=""):
    rng = np.random.default_rng(3)
    state_dict = {}
    for key, tensor in torch_ref.discriminator.Discriminator(params).state_dict().items():
        numbers = rng.standard_normal(tensor.shape)
        if key.endswith("num_batches_tracked"):
            state_dict[prefix + key] = np.array(7, np.int64)
            continue
        if tensor.ndim == 4:
            numbers *= np.prod(tensor.shape[1:]) ** -0.5
        elif key.endswith("running_var"):
            numbers = np.abs(numbers) + 0.2
        elif key.endswith(".weight"):
            numbers = 1 + 0.2 * numbers
        else:
            numbers = 0.2 * numbers
        state_dict[prefix + key] = numbers.astype(np.float32).astype(dtype)
    return state_dict


def random_images(params, dtype="float64", count=2, seed=4):
    side = params.smallest
    shape = (count, max(side, HEIGHT), max(side + 1, WIDTH), params.in_channels)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32).astype(dtype)


def twins(params, dtype="float64"):
    """The Flax model, its variables by the shipped converter, and the torch model."""
    state_dict = random_state_dict(params, dtype)
    variables = jax.tree.map(jnp.asarray, discriminator_to_flax(state_dict, params, prefix=""))
    twin = torch_ref.discriminator.Discriminator(params)
    twin.load_state_dict({key: to_tensor(array) for key, array in state_dict.items()}, strict=True, assign=True)
    twin.requires_grad_(True)
    return flax_vae.discriminator.Discriminator(params, param_dtype=dtype), variables, twin


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
        ours = jax.jit(judge, static_argnums=(0, 3))(model, variables, images, train)
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
    logits, moved = model.apply(variables, images, True, mutable=["batch_stats"])
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

    gradients, logits, moved = jax.jit(run)(variables, images)
    several = jax.pmap(named, axis_name="data", in_axes=(None, 0))(variables, shares)
    assert_agree(several[1].reshape(logits.shape), logits, 1e-12, "logits")
    ours, expected = (flatten({"gradients": a, **b}) for a, b in ((several[0], several[2]), (gradients, moved)))
    for path, leaf in expected.items():
        for device in range(2):
            assert_agree(ours[path][device], leaf, 1e-10, path)
    # Otherwise the axis would not matter, and nothing be shown.
    alone = model.apply(variables, shares[0], True)
    assert difference(alone, logits[:2]) > 1e-3


def test_bfloat16_keeps_float32_statistics():
    _, variables, twin = twins(SMALL, "float32")
    model = flax_vae.discriminator.Discriminator(SMALL, dtype=jnp.bfloat16)
    logits, moved = model.apply(variables, random_images(SMALL, "float32"), True, mutable=["batch_stats"])
    expected = nhwc(twin.train()(nchw(random_images(SMALL, "float32"))))
    assert logits.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(moved)} == {"float32", "int32"}
    assert difference(logits, expected) < 0.1
    statistics = discriminator_to_flax(
        {key: to_array(tensor) for key, tensor in twin.state_dict().items()}, SMALL, prefix=""
    )["batch_stats"]
    for path, leaf in flatten(statistics).items():
        assert_agree(flatten(moved["batch_stats"])[path], leaf, 1e-2, path)


def test_fresh_weights_have_the_sources_distributions():
    params = DiscriminatorParams(features=64, layers=1)
    model = flax_vae.discriminator.Discriminator(params)
    fresh = model.init(jax.random.key(0), random_images(params, "float32"), True)
    theirs = torch_ref.discriminator.Discriminator(params).state_dict()
    theirs = discriminator_to_flax({key: to_array(tensor) for key, tensor in theirs.items()}, params, prefix="")
    ours, theirs = flatten(fresh), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert leaf.dtype == theirs[path].dtype
        if leaf.size < 32:
            continue
        for values in (np.asarray(leaf), theirs[path]):
            if path.startswith("batch_stats") or path.endswith("3/bias"):
                assert (values == (1 if path.endswith("var") else 0)).all()
            elif path.endswith("0/bias"):  # uniform between plus and minus 1 / sqrt(4 * 4 * 3)
                assert 0.08 < np.abs(values).max() < 48**-0.5
            else:
                assert abs(values.mean() - path.endswith("scale")) < 0.08 * values.size**-0.5
                assert 0.02 * (1 - 3 * values.size**-0.5) < values.std() < 0.02 * (1 + 3 * values.size**-0.5)


# The converter


NORMALISED = "{c}.weight {n}.weight {n}.bias {n}.running_mean {n}.running_var {n}.num_batches_tracked"
LDM_KEYS = [
    "0.weight",
    "0.bias",
    *" ".join(NORMALISED.format(c=c, n=c + 1) for c in (2, 5, 8)).split(),
    "11.weight",
    "11.bias",
]


def test_the_keys_are_those_of_ldm():
    """As `NLayerDiscriminator()` of CompVis/taming-transformers names its 2,765,633 weights."""
    state_dict = torch_ref.discriminator.Discriminator(DiscriminatorParams()).state_dict()
    assert list(state_dict) == [f"main.{key}" for key in LDM_KEYS]
    assert sum(tensor.numel() for key, tensor in state_dict.items() if key.endswith(("weight", "bias"))) == 2_765_633


@pytest.mark.parametrize("params", [SMALL, DEEP], ids=["small", "deep"])
@pytest.mark.parametrize("prefix", ["", "loss.discriminator."])
def test_weights_go_both_ways_bit_for_bit(params, prefix):
    state_dict = random_state_dict(params, "float32", prefix)
    others = {"decoder.conv_in.bias": np.zeros(3)} if prefix else {}
    variables = discriminator_to_flax(state_dict | others, params, prefix)
    back = discriminator_to_torch(variables, params, prefix)
    assert list(back) == list(state_dict)
    for key, array in back.items():
        assert (array.dtype, array.shape) == (state_dict[key].dtype, state_dict[key].shape)
        assert array.tobytes() == state_dict[key].tobytes()
    again = flatten(discriminator_to_flax(back, params, prefix))
    for path, leaf in flatten(variables).items():
        assert leaf.flags.c_contiguous and leaf.tobytes() == again[path].tobytes() and leaf.dtype == again[path].dtype
        assert not any(np.shares_memory(leaf, array) for array in state_dict.values())


def test_one_error_lists_all_that_is_wrong():
    state_dict = random_state_dict(SMALL, prefix="loss.discriminator.")
    del state_dict["loss.discriminator.main.0.bias"]
    state_dict["loss.discriminator.main.2.bias"] = np.zeros(12)
    state_dict["loss.discriminator.main.3.weight"] = np.zeros(5)
    with pytest.raises(ConversionError) as error:
        discriminator_to_flax(state_dict, SMALL)
    for part in ("1 missing, 1 unexpected, 1 misshapen", "main.0.bias", "main.2.bias", "is (5,), must be (12,)"):
        assert part in str(error.value)

    variables = discriminator_to_flax(random_state_dict(SMALL), SMALL, prefix="")
    del variables["params"]["main_0"]["bias"]
    variables["batch_stats"]["main_3"]["var"] = np.zeros(5)
    with pytest.raises(ConversionError, match=r"1 missing, 0 unexpected, 1 misshapen(.|\n)*params/main_0/bias"):
        discriminator_to_torch(variables, SMALL)


@pytest.mark.parametrize("count", [np.array(2**31), np.array(-1), np.array(1.0)])
def test_a_count_that_is_none_is_refused(count):
    state_dict = random_state_dict(SMALL) | {"main.3.num_batches_tracked": count}
    with pytest.raises(ConversionError, match="main_3/count is .* set it to 0"):
        discriminator_to_flax(state_dict, SMALL, prefix="")


def test_both_refuse_in_the_same_words():
    images = np.zeros((2, 12, 11, 3), np.float32)
    for message, data in {
        "12 x 11 .* takes 12 x 12 or more": images,
        "has 1 channels|have 1 channels": images[..., :1],
        "give all 4 axes": images[0],
    }.items():
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda x: flax_vae.discriminator.Discriminator(SMALL).init(jax.random.key(0), x, True), data)
        with pytest.raises(ValueError, match=message):
            torch_ref.discriminator.Discriminator(SMALL)(to_tensor(np.moveaxis(data, -1, -3)))
    norm = flax_vae.discriminator.BatchNorm(5)
    with pytest.raises(ValueError, match="one number per channel"):
        norm.init(jax.random.key(0), jnp.zeros((1, 1, 1, 5)), True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torch_ref.discriminator.BatchNorm(5)(torch.zeros(1, 5, 1, 1))


def test_the_twins_have_the_same_classes():
    ours, theirs = (
        [value.__name__ for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        for module in (flax_vae.discriminator, torch_ref.discriminator)
    )
    assert [name for name in ours if name in theirs] == theirs == ["conv", "BatchNorm", "Discriminator"]


# The adversarial formulas


@cache
def logits():
    return np.random.default_rng(5).normal(size=(2, 2, 3, 4, 1)) * 2


THEIRS = {
    "hinge_d": lambda real, fake: (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2,
    "hinge_g": lambda real, fake: -fake.mean(),
    "non_saturating_d": lambda real, fake: (
        (
            F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
            + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))
        )
        / 2
    ),
    "non_saturating_g": lambda real, fake: F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake)),
}


@pytest.mark.parametrize("name", THEIRS)
def test_losses_and_their_gradients_agree(name):
    real, fake = logits()

    def ours(real, fake):
        loss = getattr(adversarial, name)
        return loss(real, fake) if name.endswith("_d") else loss(fake)

    value, gradients = jax.value_and_grad(ours, (0, 1))(jnp.asarray(real), jnp.asarray(fake))
    tensors = [torch.tensor(array, requires_grad=True) for array in (real, fake)]
    expected = THEIRS[name](*tensors)
    expected.backward()
    assert_agree(value, expected.item(), 1e-12)
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert_agree(gradient, np.zeros(real.shape) if tensor.grad is None else tensor.grad.numpy(), 1e-12)


@pytest.mark.parametrize(("nll", "g"), [(1.0, 1.0), (3.0, 1e-5), (1e3, 1e-6), (0.0, 1.0)])
def test_the_adaptive_weight_is_ldms(nll, g):
    nll_grad, g_grad = logits() * np.array([nll, g])[:, None, None, None, None]
    norms = [torch.linalg.vector_norm(torch.tensor(array)) for array in (nll_grad, g_grad)]
    expected = 0.5 * torch.clamp(norms[0] / (norms[1] + 1e-4), 0.0, 1e4)
    assert_agree(adversarial.adaptive_weight(nll_grad, g_grad, 0.5), expected.item(), 1e-12)


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_r1_and_its_gradients_agree(train):
    model, variables, twin = twins(SMALL)
    images = random_images(SMALL)

    @jax.jit
    @jax.value_and_grad
    def ours(weights):
        variables_in = {**variables, "params": weights}
        return adversarial.r1_penalty(lambda images: model.apply(variables_in, images, train), images)

    value, gradients = ours(variables["params"])
    inputs = nchw(images).requires_grad_(True)
    (slopes,) = torch.autograd.grad(twin.train(train)(inputs).sum(), inputs, create_graph=True)
    expected = slopes.square().sum((1, 2, 3)).mean()
    expected.backward()
    assert_agree(value, expected.item(), TOLERANCE["float64"])
    state_dict = {key: to_array(tensor) for key, tensor in twin.state_dict().items()}
    state_dict |= {
        key: np.zeros(weight.shape) if weight.grad is None else to_array(weight.grad)
        for key, weight in twin.named_parameters()
    }
    theirs = flatten(discriminator_to_flax(state_dict, SMALL, prefix="")["params"])
    for path, leaf in flatten(gradients).items():
        assert_agree(leaf, theirs[path], TOLERANCE["float64"], path)
