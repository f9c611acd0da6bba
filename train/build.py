"""Builds what a run needs from its config: model, optimisers, discriminator, initial state, constants of the losses."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flax_vae import from_pretrained
from flax_vae.adam_state import write_adam_state
from flax_vae.convert.architecture import Architecture, require_posterior
from flax_vae.convert.errors import ConversionError, FlaxVaeError
from flax_vae.convert.table import PREFIX, AdamState, adam_state_in, discriminator_to_flax, expand, graft, to_flax
from flax_vae.convert.weights import load_weights, open_weights
from flax_vae.discriminator import Discriminator
from flax_vae.finite import require_finite
from flax_vae.loading import make_model
from flax_vae.numerics import Numerics
from flax_vae.train.config import LossConfig, TrainConfig
from flax_vae.train.errors import RunError
from flax_vae.train.losses import WINDOW, Features, load_lpips_weights, smallest_side, stages_of
from flax_vae.train.optim import make_discriminator_optimizer, make_optimizer, make_schedule
from flax_vae.train.state import (
    DiscriminatorState,
    TrainState,
    create_state,
    trained_part,
    with_logvar,
)
from flax_vae.train.step import Components


def make_components(config: TrainConfig) -> Components:
    """Returns the autoencoder, its optimiser and, if the adversarial weight is not 0, the discriminator and its own.

    Raises:
      ValueError: If images or reduced images are too small for a loss.
    """
    loss = config.loss
    if loss.ssim_weight:
        config.require_size(WINDOW, f"loss.ssim_weight={loss.ssim_weight}", "no SSIM")
    if loss.lpips_weight:
        config.require_size(smallest_side(stages_of(loss.lpips_net)), f"lpips_net={loss.lpips_net!r}", "no LPIPS")
    dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
    # cuDNN's kernel needs all positions of an image on one device.
    attention = "tiles" if config.devices_per_image > 1 else "auto"
    components = Components(
        model=make_model(config.model, Numerics(dtype, remat=config.remat, attention=attention)),
        optimizer=make_optimizer(config.optim, config.steps, config.rate_factors),
        schedule=make_schedule(config.optim, config.steps),
    )
    if not config.gan.weight:
        return components
    return replace(
        components,
        discriminator=Discriminator(config.gan.discriminator, dtype=dtype),
        d_optimizer=make_discriminator_optimizer(config.gan, config.optim, config.steps),
    )


def make_constants(config: LossConfig, features: Features | None = None) -> dict[str, Any]:
    """Returns the constants of the losses: the weights of LPIPS as `lpips`, and a network as `features`, if used.

    Args:
      config: Settings of the loss.
      features: Network of `features_weight`, from images to a list of feature maps; see `feature_distance`.

    Raises:
      RunError: If they cannot be loaded, or the network is missing or superfluous.
    """
    if (features is None) == bool(config.features_weight):
        given = "no network is given" if features is None else "a network is given"
        remedy = "pass features to flax_vae.train.loop.train, or set it to 0" if features is None else "set it"
        raise RunError(f"loss.features_weight is {config.features_weight}, and {given}; {remedy}")
    constants: dict[str, Any] = {}
    if features is not None:
        # A tree, whose arrays are arguments of the step; those that a plain function holds are constants of it.
        whole = isinstance(features, jax.tree_util.Partial)
        constants["features"] = features if whole else jax.tree_util.Partial(features)
    if not config.lpips_weight:
        return constants
    try:
        return constants | {"lpips": load_lpips_weights(config.lpips_net, config.lpips_weights)}
    except (FlaxVaeError, OSError) as error:
        raise RunError(f"{error}; or train without LPIPS: --loss.lpips-weight 0 (now {config.lpips_weight})") from error


def make_state(
    config: TrainConfig,
    components: Components,
    params: dict[str, Any] | None = None,
    discriminator: dict[str, Any] | None = None,
    adam: AdamState | None = None,
) -> TrainState:
    """Returns the state before the first update, as a pure function of the config and the initial weights.

    Args:
      config: Settings of the run.
      components: Result of `make_components(config)`.
      params: Result of `load_start(config)`; None for random weights.
      discriminator: Variables of `load_start_training(config)`; None for random weights.
      adam: Adam's state of `load_start_training(config)`; None for moments of zero.
    """
    # Compiled as one program: creating hundreds of small arrays one by one would take seconds.
    return jax.jit(partial(_create, config, components))(params, discriminator, adam)


def _create(
    config: TrainConfig,
    components: Components,
    params: dict[str, Any] | None,
    discriminator: dict[str, Any] | None,
    adam: AdamState | None,
) -> TrainState:
    state = create_state(
        components.model,
        components.optimizer,
        config.seed,
        params=params,
        identity=config.identity_init,
        trainable=config.trainable,
        logvar=config.loss.logvar,
        learn_logvar=config.loss.learn_logvar,
        average=config.optim.ema_decay > 0,
        discriminator=_create_discriminator(config, components, discriminator),
    )
    if adam is None:
        return state
    mu, nu = (
        with_logvar(trained_part(moments, config.trained), 0.0, config.loss.learn_logvar)
        for moments in (adam.mu, adam.nu)
    )
    return replace(state, opt_state=write_adam_state(state.opt_state, AdamState(adam.count, mu, nu)))


def _create_discriminator(
    config: TrainConfig, components: Components, variables: dict[str, Any] | None
) -> DiscriminatorState | None:
    discriminator, optimizer = components.discriminator, components.d_optimizer
    if discriminator is None or optimizer is None:
        return None
    if variables is None:
        size = config.data.crop_size
        images = jnp.zeros((1, size, size, config.model.out_ch))
        key = jax.random.fold_in(jax.random.key(config.seed), 1)  # differs from the autoencoder's
        variables = dict(discriminator.init(key, images, train=False))
    return DiscriminatorState(variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))


def load_start(config: TrainConfig) -> dict[str, Any] | None:
    """Returns the weights named by `start_from` in float32, those of the encoder of `teacher`, or None.

    Raises:
      RunError: If they cannot be read, or have another architecture.
      NotFiniteError: If a weight is NaN or infinite.
    """
    if config.teacher is not None:
        # The teacher's decoder may have weights that the student's does not have.
        kept = {row.ours for row in expand(config.model)} - config.trained
        return trained_part(_load_teacher(config), kept)
    if config.start_from is None:
        return None
    try:
        if config.graft:
            weights = load_weights(Path(config.start_from), raw_weights=config.raw_weights)
            published, model = require_posterior(weights.params), require_posterior(config.model)
            attention, width = model.attn_levels is None, model.time_emb_dim
            tensors, params = graft(
                weights.to("flux"), published,
                attention=attention and published.attn_levels is not None,
                time_emb_dim=width, time_embedding=model.time_embedding, seed=config.seed,
            )  # fmt: skip
            params = replace(params, clamp_logvar=model.clamp_logvar)  # the weights fit both values
            tree = to_flax(tensors, params, "flux")
        else:
            # The run's architecture is used if none is stored with the weights.
            model, tree = from_pretrained(
                Path(config.start_from), config.model, param_dtype=jnp.float32, raw_weights=config.raw_weights
            )
            params = model.params
    except (FlaxVaeError, OSError) as error:
        raise RunError(f"start_from={config.start_from!r} cannot be loaded: {error}") from error
    other = [
        f"{name}: {vars(params)[name]!r} there, {vars(config.model)[name]!r} here"
        for name in params.differences(config.model)
    ]
    if other:
        raise RunError(
            f"start_from={config.start_from!r} holds another architecture ({', '.join(other)}); choose the "
            "preset of these weights, or graft=True to add attention or time to them"
        )
    require_finite(tree, f"start_from={config.start_from!r}")
    return jax.tree.map(lambda array: jnp.array(array, jnp.float32), tree)


def _load_teacher(config: TrainConfig) -> dict[str, Any]:
    """Returns the parameters of the teacher in float32.

    Raises:
      RunError: If they cannot be read, or if the student has another encoder or other latents.
      NotFiniteError: If a weight is NaN or infinite.
    """
    path, name = Path(config.teacher or ""), f"teacher={config.teacher!r}"
    try:
        _, tree = from_pretrained(
            path, _teachers_architecture(config), param_dtype=jnp.float32, raw_weights=config.raw_weights
        )
    except ConversionError as error:
        raise RunError(
            f"{name} does not fit the student, which has the encoder and the latents of its teacher, and of its own "
            f"only {' and '.join(config.model.decoder_fields)}: {error}"
        ) from error
    except (FlaxVaeError, OSError) as error:
        raise RunError(f"{name} cannot be loaded: {error}") from error
    require_finite(tree, name)
    return tree


def _teachers_architecture(config: TrainConfig) -> Architecture:
    """Returns the student's architecture with the teacher's decoder, which the teacher must have.

    Raises:
      ConversionError: If the teacher is an autoencoder of another kind.
      FlaxVaeError: If the teacher cannot be read.
    """
    student = config.model
    try:
        teacher = load_weights(Path(config.teacher or ""), verify=False, raw_weights=config.raw_weights).params
    except ConversionError:
        # If no architecture is stored with the weights, the decoder is as wide as the encoder.
        return replace(student, decoder_widths=None, post_quant_conv=None) if student.has_posterior else student
    _ = student.differences(teacher)  # raises for another kind
    return replace(student, **{name: getattr(teacher, name) for name in student.decoder_fields})


class StartTraining(NamedTuple):
    """What a training checkpoint holds beside the weights that a run starts from.

    Attributes:
      discriminator: Parameters and batch statistics in float32, or None for random ones.
      adam: Adam's state of the autoencoder's parameters, or None for a fresh one.
      notes: Lines to print about them.
    """

    discriminator: dict[str, Any] | None = None
    adam: AdamState | None = None
    notes: tuple[str, ...] = ()


def load_start_training(config: TrainConfig) -> StartTraining:
    """Loads what else the training checkpoint `start_from` holds: a discriminator as LDM writes it, and Adam's state.

    A discriminator is used if the run trains one, and Adam's state, of PyTorch's `{"model": ..., "optimizer": ...}`, if
    the run grafts nothing.  What does not fit the run is not used, and a note gives the reason.

    Raises:
      RunError: If the file cannot be read.
      NotFiniteError: If a number is NaN or infinite.
    """
    if config.start_from is None:
        return StartTraining()
    try:
        tensors = open_weights(Path(config.start_from), raw_weights=config.raw_weights).tensors
    except (FlaxVaeError, OSError) as error:
        raise RunError(f"start_from={config.start_from!r} cannot be loaded: {error}") from error
    discriminator, adam, notes = None, None, []
    if config.gan.weight and any(name.startswith(PREFIX) for name in tensors):
        try:
            discriminator = discriminator_to_flax(tensors, config.gan.discriminator)
            notes.append(f"the discriminator starts from {config.start_from} too")
        except ConversionError:
            notes.append(
                f"the discriminator in {config.start_from} is not used: its tensors differ from gan.features="
                f"{config.gan.features}, gan.layers={config.gan.layers}"
            )
    if not config.graft:
        try:
            adam = adam_state_in(tensors, config.model)
            if adam is not None:
                notes.append(f"Adam's state after {adam.count} updates starts from {config.start_from} too")
        except ConversionError as error:
            notes.append(f"Adam's state in {config.start_from} is not used: {' '.join(str(error).split())}")
    require_finite((discriminator, adam), f"start_from={config.start_from!r}")
    discriminator = jax.tree.map(lambda leaf: jnp.array(leaf, _float32_of(leaf)), discriminator)
    return StartTraining(discriminator, adam, tuple(notes))


def _float32_of(leaf: Any) -> Any:
    return jnp.float32 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
