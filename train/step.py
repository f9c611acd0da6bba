"""One training step as a pure function, which `flax_vae.train.devices.parallel` compiles."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from flax_vae.autoencoder import Model
from flax_vae.discriminator import Discriminator
from flax_vae.train.config import TrainConfig
from flax_vae.train.gradients import Average, Gradients, Scores, discriminator_active, gradients, last_kernels
from flax_vae.train.losses import adaptive_weight
from flax_vae.train.state import DiscriminatorState, TrainState, split_logvar, trained_part, with_logvar, with_part


@dataclass(frozen=True)
class Components:
    """Model, optimisers and discriminator of a run.

    Attributes:
      model: Autoencoder.
      optimizer: Optimiser of the autoencoder.
      schedule: Learning rate of the optimiser, for the scores.
      discriminator: Discriminator, or None.
      d_optimizer: Optimiser of the discriminator, or None.
    """

    model: Model
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    discriminator: Discriminator | None = None
    d_optimizer: optax.GradientTransformation | None = None


def train_step(
    state: TrainState,
    images: Float[Array, "b h w c"],
    weights: dict[str, Any],
    *,
    components: Components,
    config: TrainConfig,
    axis_name: str | None = None,
    size: int | None = None,
) -> tuple[TrainState, Scores]:
    """Updates the autoencoder and the discriminator, if there is one, from a single forward pass.

    If a loss or the norm of a gradient is not finite, only the counters change.

    Args:
      state: State before the update.
      images: Images in [-1, 1]; under pmap, the slice of this device.
      weights: Constants of the losses: `lpips` and `features`.
      components: Model, optimisers and discriminator.
      config: Settings of the run.
      axis_name: Name of the device axis under pmap; None otherwise.
      size: Side that the latents of this update are reduced to, `drawn_size`; a shape, so each size is compiled.

    Returns:
      The state after the update and its scores, equal on every device: the terms of
      `flax_vae.train.losses.reconstruction` and `flax_vae.train.gradients`, `grad_norm` and `d_grad_norm` (before
      clipping), `learning_rate`, and `skipped` and `in_a_row`, the numbers of skipped updates.
    """
    average: Average = partial(jax.lax.pmean, axis_name=axis_name) if axis_name is not None else lambda tree: tree
    first = 0 if axis_name is None else images.shape[0] * jax.lax.axis_index(axis_name)
    discriminator = components.discriminator and components.discriminator.clone(axis_name=axis_name)
    batch_stats = state.discriminator and state.discriminator.batch_stats

    examples, count = (images, first + jnp.arange(images.shape[0])), config.optim.accumulate
    weight = None
    if discriminator is not None and config.gan.adaptive and count > 1:
        # A ratio of norms for the whole batch is not the mean of the ratios of its parts, so it is computed first.
        measure = partial(last_kernels, model=components.model, discriminator=discriminator, config=config, size=size)
        _, (nll, g) = _accumulate(lambda _, part: (None, measure(state, *part, weights)), None, examples, count)
        weight = adaptive_weight(average(nll), average(g), config.gan.weight)

    def one(batch_stats: Any, part: tuple[Array, Array]) -> tuple[Any, Gradients]:
        grads = gradients(
            state, batch_stats, *part, weights,
            model=components.model, discriminator=discriminator, config=config, average=average, weight=weight,
            size=size,
        )  # fmt: skip
        return grads.batch_stats, grads._replace(batch_stats=None)

    batch_stats, grads = _accumulate(one, batch_stats, examples, count)
    # Average everything that is returned: pmap does not check that the devices agree.  The discriminator's norms have
    # averaged their statistics over the devices already.
    grads = average(grads)._replace(batch_stats=batch_stats)

    scores = dict(grads.scores)
    # The optimiser does not count skipped updates.
    rate = components.schedule(state.step - state.skipped)
    scores |= {"grad_norm": optax.tree.norm(grads.autoencoder), "learning_rate": rate}
    if grads.discriminator is not None:
        scores["d_grad_norm"] = optax.tree.norm(grads.discriminator)
    finite = jnp.all(jnp.isfinite(jnp.stack([scores[name] for name in FINITE if name in scores])))
    after = _updated(state, grads, components, config)
    after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
    counts = {
        "skipped": state.skipped + jnp.where(finite, 0, 1),
        "in_a_row": jnp.where(finite, 0, state.in_a_row + 1),
    }
    return replace(after, step=state.step + 1, **counts), scores | counts


def drawn_size(config: TrainConfig, step: int) -> int | None:
    """Returns the side that the latents of an update are reduced to, or None, as a pure function of seed and step.

    It is drawn on the host, because it is a shape, and equal in all processes.

    Args:
      config: Settings of the run.
      step: Number of updates before this one, `TrainState.step`.
    """
    if not config.reduced_sizes:
        return None
    draw = np.random.default_rng((config.seed, step))
    return int(draw.choice(config.reduced_sizes)) if draw.random() < config.latents.equivariance else None


FINITE = ("loss", "grad_norm", "d_loss", "d_grad_norm")


def _accumulate(
    one: Callable[[Any, tuple[Array, Array]], tuple[Any, Any]], carry: Any, examples: tuple[Array, Array], count: int
) -> tuple[Any, Any]:
    """Returns the last `carry` and the mean of the results over equal parts of a batch.

    Args:
      one: Function `(carry, part) -> (carry, result)`, which is called for one part after another.
      carry: Value that is passed to the first part.
      examples: Batch.
      count: Number of parts.
    """
    if count == 1:
        return one(carry, examples)
    # Part k takes every count-th example, so that each device of a mesh has an equal slice of every part.
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), examples)

    def add(so_far: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], None]:
        carry, total = so_far
        carry, new = one(carry, part)
        return (carry, jax.tree.map(jnp.add, total, new)), None

    _, shapes = jax.eval_shape(one, carry, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (carry, total), _ = jax.lax.scan(add, (carry, zeros), parts)
    return carry, jax.tree.map(lambda leaf: leaf / count, total)


def _updated(state: TrainState, grads: Gradients, components: Components, config: TrainConfig) -> TrainState:
    """Returns the state with updated weights, moving average, and optimiser states."""
    before = with_logvar(trained_part(state.params, config.trained), state.logvar, config.loss.learn_logvar)
    updates, opt_state = components.optimizer.update(grads.autoencoder, state.opt_state, before)
    part, logvar = split_logvar(optax.apply_updates(before, updates), state.logvar)  # pyright: ignore[reportArgumentType]
    ema = state.ema
    if ema is not None:
        # A smaller decay at first, so that the average forgets the random initial weights.
        decay = jnp.minimum(config.optim.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(part, ema, 1.0 - decay)
    after = replace(state, params=with_part(state.params, part), logvar=logvar, opt_state=opt_state, ema=ema)
    if state.discriminator is None or components.d_optimizer is None:
        return after

    current = state.discriminator
    updates, opt_state = components.d_optimizer.update(grads.discriminator, current.opt_state, current.params)
    updated = DiscriminatorState(optax.apply_updates(current.params, updates), grads.batch_stats, opt_state)
    # While it is inactive, keep the optimiser's state too: with zero gradients Adam would still count and move.
    active = discriminator_active(state, config.gan)
    return replace(after, discriminator=jax.tree.map(lambda new, old: jnp.where(active, new, old), updated, current))
