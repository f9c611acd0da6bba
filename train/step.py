"""One update, as a pure function; `flax_vae.train.devices.parallel` compiles it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from flax_vae import AutoEncoder
from flax_vae.discriminator import Discriminator
from flax_vae.train.config import TrainConfig
from flax_vae.train.gradients import Average, Gradients, Scores, gradients, last_kernels, playing
from flax_vae.train.losses import adaptive_weight
from flax_vae.train.state import DiscriminatorState, TrainState, learned, trained_part, unlearned


@dataclass(frozen=True)
class Components:
    """What an update is made of, beside the state.

    Attributes:
      model: the autoencoder.
      optimizer: whose state is in the train state.
      schedule: its learning rate, for the scores.
      discriminator: the other player, or None.
      d_optimizer: its optimiser, or None.
    """

    model: AutoEncoder
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    discriminator: Discriminator | None = None
    d_optimizer: optax.GradientTransformation | None = None


def train_step(
    state: TrainState,
    images: Float[Array, "b h w c"],
    weights: dict[str, Any],
    *,
    parts: Components,
    config: TrainConfig,
    axis_name: str | None = None,
) -> tuple[TrainState, Scores]:
    """One update of the autoencoder and, where there is one, of the discriminator, both from the same forward pass.

    Where the loss or the length of a gradient is not finite, nothing but the counts changes.

    Args:
      state: before the update.
      images: in [-1, 1]; under pmap this device's share of the batch.
      weights: constants of the losses: `lpips`.
      parts: the model, and what updates it.
      config: of the run.
      axis_name: of the devices, under pmap only.

    Returns:
      The state after the update, and the scores, all equal on every device: those of
      `flax_vae.train.losses.reconstruction` and `flax_vae.train.gradients`, `grad_norm` and `d_grad_norm` (before the
      clip), `learning_rate`, and the counts of updates left out.
    """
    average: Average = partial(jax.lax.pmean, axis_name=axis_name) if axis_name is not None else lambda tree: tree
    first = 0 if axis_name is None else images.shape[0] * jax.lax.axis_index(axis_name)
    discriminator = parts.discriminator and parts.discriminator.clone(axis_name=axis_name)
    batch_stats = state.discriminator and state.discriminator.batch_stats

    examples, count = (images, first + jnp.arange(images.shape[0])), config.optim.accumulate
    weight = None
    if discriminator is not None and config.gan.adaptive and count > 1:
        # A quotient of lengths: that of the whole batch is no mean of those of its parts, so they are measured first.
        measure = partial(last_kernels, model=parts.model, discriminator=discriminator, config=config)
        _, (nll, g) = _accumulate(lambda _, part: (None, measure(state, *part, weights)), None, examples, count)
        weight = adaptive_weight(average(nll), average(g), config.gan.weight)

    def one(batch_stats: Any, part: tuple[Array, Array]) -> tuple[Any, Gradients]:
        grads = gradients(
            state, batch_stats, *part, weights,
            model=parts.model, discriminator=discriminator, config=config, average=average, weight=weight,
        )  # fmt: skip
        return grads.batch_stats, grads._replace(batch_stats=None)

    batch_stats, grads = _accumulate(one, batch_stats, examples, count)
    # Nothing may be returned that was not averaged: under pmap, no one checks that the devices agree.  The statistics
    # of the norms are those of all devices already.
    grads = average(grads)._replace(batch_stats=batch_stats)

    scores = dict(grads.scores)
    # The optimiser does not count the updates that were left out.
    rate = parts.schedule(state.step - state.skipped)
    scores |= {"grad_norm": optax.tree.norm(grads.autoencoder), "learning_rate": rate}
    if grads.discriminator is not None:
        scores["d_grad_norm"] = optax.tree.norm(grads.discriminator)
    finite = jnp.all(jnp.isfinite(jnp.stack([scores[name] for name in FINITE if name in scores])))
    after = _updated(state, grads, parts, config)
    after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
    counts = {
        "skipped": state.skipped + jnp.where(finite, 0, 1),
        "in_a_row": jnp.where(finite, 0, state.in_a_row + 1),
    }
    return replace(after, step=state.step + 1, **counts), scores | counts


FINITE = ("loss", "grad_norm", "d_loss", "d_grad_norm")


def _accumulate(
    one: Callable[[Any, tuple[Array, Array]], tuple[Any, Any]], carry: Any, examples: tuple[Array, Array], count: int
) -> tuple[Any, Any]:
    """Returns `carry`, handed from part to part, and the mean of results over equal parts of a batch.

    Args:
      one: Computes `(carry, part) -> (carry, result)`; it is called for one part after the other.
      carry: given to the first part.
      examples: the batch.
      count: of parts.
    """
    if count == 1:
        return one(carry, examples)
    # Part k takes every count-th example: over a mesh, each device then has its share of every part.
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), examples)

    def add(so_far: tuple[Any, Any], part: Any) -> tuple[tuple[Any, Any], None]:
        carry, total = so_far
        carry, new = one(carry, part)
        return (carry, jax.tree.map(jnp.add, total, new)), None

    _, shapes = jax.eval_shape(one, carry, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (carry, total), _ = jax.lax.scan(add, (carry, zeros), parts)
    return carry, jax.tree.map(lambda leaf: leaf / count, total)


def _updated(state: TrainState, grads: Gradients, parts: Components, config: TrainConfig) -> TrainState:
    """The state with the weights, the averages and the optimisers' states of after the update."""
    before = learned(trained_part(state.params, config.trainable), state.logvar, config.loss.learn_logvar)
    updates, opt_state = parts.optimizer.update(grads.autoencoder, state.opt_state, before)
    part, logvar = unlearned(optax.apply_updates(before, updates), state.logvar)  # pyright: ignore[reportArgumentType]
    ema = state.ema
    if ema is not None:
        # A young average forgets its beginning: random weights.
        decay = jnp.minimum(config.optim.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(part, ema, 1.0 - decay)
    after = replace(state, params={**state.params, **part}, logvar=logvar, opt_state=opt_state, ema=ema)
    if state.discriminator is None or parts.d_optimizer is None:
        return after

    player = state.discriminator
    updates, opt_state = parts.d_optimizer.update(grads.discriminator, player.opt_state, player.params)
    moved = DiscriminatorState(optax.apply_updates(player.params, updates), grads.batch_stats, opt_state)
    # Adam would count updates, and move on by its memory, even with gradients of zero.
    now = playing(state, config.gan)
    return replace(after, discriminator=jax.tree.map(lambda new, old: jnp.where(now, new, old), moved, player))
