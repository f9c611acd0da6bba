"""Three updates of autoencoder and discriminator agree with PyTorch: weights, moments, averages, statistics, scores."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.convert import PRESETS, to_flax
from flax_vae.convert.architecture.discriminator import DiscriminatorParams
from flax_vae.convert.formats.pytorch import to_array
from flax_vae.convert.table.discriminator import discriminator_to_flax
from flax_vae.convert.table.rows import flatten
from flax_vae.train.build import make_components
from flax_vae.train.config.schema import DataConfig, GanConfig, LossConfig, OptimConfig, TrainConfig
from flax_vae.train.gradients import example_noise
from flax_vae.train.losses.lpips_weights import from_torch_names
from flax_vae.train.losses.perceptual import NETS, Stage
from flax_vae.train.state import DiscriminatorState, create_state
from flax_vae.train.step import Components, train_step
from tests.flax_vae.random_models import QUICKLY
from tests.parity import agree, discriminators, test_lpips
from tests.parity.agree import nchw
from tests.parity.test_gradients import assert_trees_agree
from tests.parity.torch_update import TorchTrainer
from torch_ref.loading import to_tensor

TOLERANCE = 1e-9
UPDATES = 3
BATCH, HEIGHT, WIDTH = 4, 8, 10
STAGES = (Stage(0, (4,)), Stage(5, (6,), pool=2))
LAYERS = ([["0"], ["pool", "5"]], 2, {})

# Rates are powers of two: a learning rate is a float32, also among float64.
LDM = TrainConfig(
    model=replace(PRESETS["tiny"], resolution=16, ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=4, attn_levels=()),
    data=DataConfig(crop_size=16),
    optim=OptimConfig(
        learning_rate=2**-8, schedule="constant", warmup_steps=2, weight_decay=0.1, clip_norm=0.5, ema_decay=0.15
    ),
    loss=LossConfig(reduction="sum", kl_weight=1e-2, lpips_weight=0.7, learn_logvar=True, logvar=-0.25),
    gan=GanConfig(weight=0.5, start=0, features=6, layers=1, learning_rate=2**-9),
    batch_size=BATCH,
    steps=100,
)
CASES = {
    "LDM": LDM,
    # The discriminator begins at the second update; the clip does nothing.
    "mean": replace(
        LDM,
        optim=replace(LDM.optim, clip_norm=1e3),
        loss=LossConfig(distance="mse", kl_weight=1e-2, sample=True),
        gan=replace(LDM.gan, loss="non_saturating", r1=3.0, adaptive=False, start=1),
    ),
    "decoder in parts": replace(
        LDM,
        trainable="decoder",
        start_from="elsewhere",
        optim=replace(LDM.optim, accumulate=2),
        loss=LossConfig(kl_weight=1e-2, logvar=0.5),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def little_lpips():
    """Replaces VGG16 by two small stages, in both implementations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETS, "vgg", STAGES)
        patch.setitem(test_lpips.LAYERS, "vgg", LAYERS)
        yield


@dataclass
class Twins:
    """Both implementations with equal weights, and their inputs."""

    ours: Any
    components: Components
    theirs: TorchTrainer
    lpips: dict[str, Any]
    images: np.ndarray


def twins(config: TrainConfig, dtype: str) -> Twins:
    state_dict = agree.random_state_dict(config.model, dtype)
    params = jax.tree.map(jnp.asarray, to_flax(state_dict, config.model, "flux"))
    architecture = DiscriminatorParams(3, config.gan.features, config.gan.layers)
    discriminator, variables, d_twin = discriminators.twins(architecture, dtype)

    components = make_components(config)
    d_optimizer = components.d_optimizer
    assert d_optimizer is not None
    components = replace(
        components,
        model=components.model.clone(param_dtype=dtype),
        discriminator=discriminator.clone(dtype=components.model.dtype),
    )
    weights, statistics = variables["params"], variables["batch_stats"]
    d_state = DiscriminatorState(weights, statistics, d_optimizer.init(weights))
    state = create_state(
        components.model, components.optimizer, 0, params=params, trainable=config.trainable, logvar=config.loss.logvar,
        learn_logvar=config.loss.learn_logvar, average=True, discriminator=d_state,
    )  # fmt: skip
    state = jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state)

    weights = {name: tensor.astype(dtype) for name, tensor in test_lpips.random_weights(STAGES).items()}
    tensors = {name: to_tensor(tensor) for name, tensor in weights.items()}
    perceptual = partial(test_lpips.reference, tensors, "vgg") if config.loss.lpips_weight else None
    logvar = to_tensor(np.asarray(state.logvar))
    theirs = TorchTrainer(config, agree.torch_model(config.model, state_dict), d_twin, perceptual, logvar)

    shape = (UPDATES, BATCH, HEIGHT, WIDTH, 3)
    images = np.random.default_rng(6).uniform(-1, 1, shape).astype(np.float32).astype(dtype)
    lpips = {"lpips": jax.tree.map(jnp.asarray, from_torch_names(weights, STAGES))}
    return Twins(state, components, theirs, lpips, images)


def noise_of(config: TrainConfig, step: int, dtype: str) -> np.ndarray:
    """Returns the noise of our update, a function of seed, step and example."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    like = jnp.zeros((BATCH, HEIGHT, WIDTH, config.model.z_channels), dtype)
    return np.asarray(example_noise(key, jnp.arange(BATCH), like))


def ours_by_name(state) -> dict[str, Any]:
    """What an update changes, as trees of the Flax names."""
    adam, d_adam = state.opt_state[1][0], state.discriminator.opt_state[0]
    return {
        "weights": {"params": state.params, "logvar": state.logvar},
        "averages": state.ema,
        "first moments": adam.mu,
        "second moments": adam.nu,
        "discriminator": state.discriminator.params,
        "running statistics": state.discriminator.batch_stats,
        "discriminator's first moments": d_adam.mu,
        "discriminator's second moments": d_adam.nu,
        "counts": {"own": adam.count, "discriminator's": d_adam.count},
    }


def theirs_by_name(trainer: TorchTrainer) -> dict[str, Any]:
    """The same of PyTorch, by the shipped converters: they only move numbers, whatever these mean."""
    model, judge, config = trainer.model, trainer.discriminator, trainer.config
    assert judge is not None

    def tree(values: Mapping[str, Any]) -> dict[str, Any]:
        rest = {key: np.zeros(tensor.shape) for key, tensor in model.state_dict().items() if key not in values}
        whole = to_flax({key: to_array(tensor) for key, tensor in values.items()} | rest, config.model, "flux")
        trained = {name.split(".")[0] for name in trainer.trained}
        return {name: part for name, part in whole.items() if name in trained}

    def moments(moment: str) -> dict[str, Any]:
        found = tree({name: trainer.optimizer.state[weight][moment] for name, weight in trainer.trained.items()})
        if config.loss.learn_logvar:
            found["logvar"] = to_array(trainer.optimizer.state[trainer.logvar][moment])
        return found

    def judge_tree(values: Mapping[str, Any]) -> dict[str, Any]:
        values = {**judge.state_dict(), **values}
        return discriminator_to_flax({key: to_array(tensor) for key, tensor in values.items()}, judge.params, "")

    def judge_moments(moment: str) -> dict[str, Any]:
        memory = trainer.d_optimizer.state
        zero = {name: weight.detach() * 0 for name, weight in judge.named_parameters()}
        return judge_tree(
            zero | {name: memory[weight][moment] for name, weight in judge.named_parameters() if weight in memory}
        )["params"]

    weights = {key: to_array(tensor) for key, tensor in model.state_dict().items()}
    return {
        "weights": {"params": to_flax(weights, config.model, "flux"), "logvar": to_array(trainer.logvar)},
        "averages": tree(trainer.ema),
        "first moments": moments("exp_avg"),
        "second moments": moments("exp_avg_sq"),
        "discriminator": judge_tree({})["params"],
        "running statistics": judge_tree({})["batch_stats"],
        "discriminator's first moments": judge_moments("exp_avg"),
        "discriminator's second moments": judge_moments("exp_avg_sq"),
        "counts": {"own": np.array(trainer.step), "discriminator's": np.array(trainer.d_step)},
    }


def update(config: TrainConfig, twins: Twins):
    """Returns our update, compiled."""
    # Code for fusions would take a third of the compiler's time; these programs run three times.
    return jax.jit(partial(train_step, components=twins.components, config=config), compiler_options=QUICKLY)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES)
def test_three_updates_agree(case):
    config = CASES[case]
    both = twins(config, "float64")
    ours, step = both.ours, update(config, both)
    for number, images in enumerate(both.images):
        noise = noise_of(config, number, "float64")
        ours, scores = step(ours, images, both.lpips)
        their_scores = both.theirs.update(nchw(images), nchw(noise))

        assert not their_scores.keys() - scores.keys() - {"logvar"}
        for name, score in scores.items():  # those that have no meaning yet are zero in both
            assert score == pytest.approx(their_scores[name], rel=TOLERANCE, abs=0), f"{name}, update {number}"
        theirs = theirs_by_name(both.theirs)
        for name, tree in ours_by_name(ours).items():
            if not their_scores["d_weight"] and name.startswith("discriminator's"):
                assert not any(np.any(leaf) for leaf in jax.tree.leaves(tree)), name  # no moments before it begins
            else:
                assert_trees_agree({name: tree}, {name: theirs[name]}, TOLERANCE)
    changed = jax.tree.map(lambda new, old: bool(np.any(np.asarray(new) != np.asarray(old))), ours, both.ours)
    encoder = set(jax.tree.leaves(changed.params["encoder"]))
    assert encoder == ({False} if config.trainable == "decoder" else {True})
    assert all(jax.tree.leaves(changed.params["decoder"])) and all(jax.tree.leaves(changed.discriminator))


@pytest.fixture(scope="module")
def first_update():
    """Returns trees and scores after one update of a float32 state, by computation dtype, and PyTorch's."""
    results = {}
    for dtype in ("float32", "bfloat16"):
        config = replace(LDM, dtype=dtype)
        both = twins(config, "float32")
        ours, scores = update(config, both)(both.ours, both.images[0], both.lpips)
        results[dtype] = ours_by_name(ours), scores
        scores = both.theirs.update(nchw(both.images[0]), nchw(noise_of(config, 0, "float32")))
        results["torch"] = theirs_by_name(both.theirs), scores
    return results


# After one update the first moments are the gradients.
GRADIENTS = {"first moments": "weights", "discriminator's first moments": "discriminator"}


def together(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf).astype(np.float64) for _, leaf in sorted(flatten(tree).items())])


def apart(ours, theirs) -> float:
    """Returns the norm of the difference of two trees, relative to the norm of the second."""
    return float(np.linalg.norm(together(ours) - together(theirs)) / np.linalg.norm(together(theirs)))


def test_one_update_in_float32_agrees_to_rounding(first_update):
    (ours, our_scores), (theirs, their_scores) = first_update["float32"], first_update["torch"]
    for name, score in our_scores.items():
        assert score == pytest.approx(their_scores[name], rel=1e-5), name
    assert apart(ours["running statistics"], theirs["running statistics"]) <= 1e-6
    for moments, weights in GRADIENTS.items():
        assert apart(ours[moments], theirs[moments]) <= 1e-5, moments
        # Adam's first update is the gradient's sign; where that is nothing but rounding, each has its own.
        gradients = theirs[moments]
        rest = {"logvar": ours["weights"]["logvar"]} if "logvar" in gradients else {}
        after = [{**tree[weights].get("params", tree[weights]), **rest} for tree in (ours, theirs)]
        clear = np.abs(together(gradients)) > 1e-3 * np.sqrt(np.mean(together(gradients) ** 2))
        assert clear.mean() > 0.5
        np.testing.assert_allclose(*(together(tree)[clear] for tree in after), rtol=0, atol=1e-6)


def test_one_update_in_bfloat16_is_near_the_one_in_float32(first_update):
    (ours, our_scores), (exact, exact_scores) = first_update["bfloat16"], first_update["float32"]
    for name, score in our_scores.items():
        # Quotients of gradients, and their lengths, carry the rounding of a backward pass.
        assert float(score) == pytest.approx(float(exact_scores[name]), rel=0.1 if name in LOOSE else 0.01), name
    for moments in GRADIENTS:
        assert apart(ours[moments], exact[moments]) <= 0.25, moments
    assert {leaf.dtype for leaf in jax.tree.leaves((ours, our_scores))} == {np.dtype("float32"), np.dtype("int32")}
    for name, tree in ours.items():
        assert np.isfinite(together(tree)).all(), name


LOOSE = {"d_weight", "grad_norm", "d_grad_norm"}
