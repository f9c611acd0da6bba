"""Optimisers: AdamW with clipped gradients for the autoencoder, Adam for the discriminator."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

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


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns AdamW with clipped gradients; weight decay applies to kernels only, not to biases and norms."""
    return optax.chain(
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


def make_discriminator_optimizer(gan: GanConfig, optim: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Returns Adam, with the autoencoder's kind of schedule, which starts when the discriminator becomes active."""
    schedule = make_schedule(replace(optim, learning_rate=gan.learning_rate), max(steps - gan.start, 1))
    return optax.adam(schedule, b1=gan.b1, b2=gan.b2)
