"""The optimisers: AdamW behind a clip for the autoencoder, Adam for its discriminator."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from flax_vae.train.config import GanConfig, OptimConfig


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate of update `step`, counted from 0.

    It rises linearly, to the peak at update `warmup_steps - 1`; then it stays, or falls along a cosine to
    `final_fraction` of the peak at the last update.
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
    """AdamW; only kernels decay, since a norm's scale belongs at 1 and a bias anywhere."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )


def make_discriminator_optimizer(gan: GanConfig, optim: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Adam, whose schedule is like the autoencoder's and begins when the discriminator does."""
    schedule = make_schedule(replace(optim, learning_rate=gan.learning_rate), max(steps - gan.start, 1))
    return optax.adam(schedule, b1=gan.b1, b2=gan.b2)
