"""One update, as a pure function; `train.parallel` compiles it."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from flax_vae import AutoEncoder
from train.config import LossConfig
from train.losses import reconstruction_loss
from train.state import TrainState

Scores = dict[str, Float[Array, ""]]


def train_step(
    state: TrainState,
    images: Float[Array, "b h w c"],
    *,
    model: AutoEncoder,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    loss: LossConfig,
    seed: int,
    axis_name: str | None = None,
) -> tuple[TrainState, Scores]:
    """One update.

    Args:
      state: before the update.
      images: in [-1, 1]; under pmap this device's share of the batch.
      model: the autoencoder.
      optimizer: whose state is in `state`.
      schedule: the optimiser's learning rate, for the scores.
      loss: what is minimised.
      seed: of the noise.
      axis_name: of the devices, under pmap only.

    Returns:
      The state after the update, and `loss`, `l1`, `kl` (nats per image), `grad_norm` (before the clip) and
      `learning_rate`, all equal on every device.
    """
    first = 0 if axis_name is None else images.shape[0] * jax.lax.axis_index(axis_name)
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def objective(params: dict[str, Any]) -> tuple[Float[Array, ""], Scores]:
        apply = cast(Callable[..., Any], partial(model.apply, {"params": params}))
        # Encoding
        posterior = apply(images, method="posterior")
        z = posterior.mode()
        if loss.sample:
            z = posterior.sample(noise=example_noise(key, first, z))
        # Decoding
        reconstruction = apply(apply(z, method="scale"), method="decode")
        return reconstruction_loss(reconstruction, images, posterior, loss)

    (_, scores), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    if axis_name is not None:
        # Nothing may be returned that was not averaged: under pmap, no one checks that the devices agree.
        grads, scores = jax.lax.pmean((grads, scores), axis_name)
    scores |= {"grad_norm": optax.tree.norm(grads), "learning_rate": schedule(state.step)}
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), scores


def example_noise(key: PRNGKeyArray, first: Any, like: Float[Array, "b h w z"]) -> Float[Array, "b h w z"]:
    """Standard normal noise in which every example has its own key, folded from its number in the whole batch.

    Folding in the device's number would keep devices apart as well; this way the noise is also the same on any number
    of devices.

    Args:
      key: of this update.
      first: number of the first example here in the whole batch.
      like: gives shape and dtype.
    """
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(first + jnp.arange(like.shape[0]))
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)
