"""Optimisers: AdamW with clipped gradients for the autoencoder, Adam for the discriminator."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from flax_vae.convert.table import flatten, unflatten
from flax_vae.train.config import GanConfig, OptimConfig


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, counted from 0.

    It rises linearly to its peak at step `warmup_steps - 1`.  Then it stays constant, or falls along a cosine to
    `final_fraction` of the peak at the last step.

    Args:
      config: Settings of the optimiser.
      steps: Number of steps of the run.
    """
    warmup = min(config.warmup_steps, steps // 2)
    decay = max(steps - warmup, 1)

    def schedule(step: ArrayLike) -> Float[Array, ""]:
        done = jnp.asarray(step) + 1
        rising = done / max(warmup, 1)
        if config.schedule == "constant":
            return config.learning_rate * jnp.minimum(rising, 1.0)
        progress = jnp.clip((done - warmup) / decay, 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        falling = config.final_fraction + (1.0 - config.final_fraction) * cosine
        return config.learning_rate * jnp.where(done <= warmup, rising, falling)

    return schedule


def make_optimizer(
    config: OptimConfig, steps: int, factors: Mapping[str, float] | None = None
) -> optax.GradientTransformation:
    """Returns AdamW with clipped gradients; weight decay applies to kernels only, not to biases and norms.

    Args:
      config: Settings of the optimiser.
      steps: Number of steps of the run.
      factors: Factors of the learning rates of some weights, by their paths, `decoder/conv_out/kernel`.
    """
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )
    return _scaled(optimizer, factors) if factors else optimizer


def _scaled(optimizer: optax.GradientTransformation, factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Returns an optimiser whose updates are multiplied by factors; its state is the same, so rates can be changed."""

    def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        updates, state = optimizer.update(updates, state, params)
        return unflatten({path: leaf * factors.get(path, 1.0) for path, leaf in flatten(updates).items()}), state

    return optax.GradientTransformation(optimizer.init, update)


def make_discriminator_optimizer(gan: GanConfig, optim: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns Adam, with the autoencoder's kind of schedule, which starts when the discriminator becomes active."""
    schedule = make_schedule(replace(optim, learning_rate=gan.learning_rate), max(steps - gan.start, 1))
    return optax.adam(schedule, b1=gan.b1, b2=gan.b2)
