"""Time inputs of models that are conditioned on time."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_vae.convert.architecture import Architecture, AutoEncoderParams
from flax_vae.embedding import sinusoidal_embedding
from flax_vae.errors import UserError


def as_input(time: Float[Array, " b"], params: AutoEncoderParams) -> Float[Array, "b ..."]:
    """Returns the time input of a model for one scalar per image: the scalars, or their sinusoidal embedding."""
    assert params.time_emb_dim is not None
    return time if params.time_embedding == "sinusoidal" else sinusoidal_embedding(time, params.time_emb_dim)


def same_time(count: int, time: float | None, params: Architecture) -> Float[Array, "b ..."] | None:
    """Returns one time for `count` images as a model's input; None for a model without time.

    Raises:
      UserError: If `time` is missing or superfluous.
    """
    if (params.time_emb_dim is None) != (time is None):
        if time is None:
            raise UserError("the model is conditioned on time; pass a time, for example --time 0")
        raise UserError(f"time={time:g} is given, but the model is not conditioned on time; leave it out")
    if time is None or not isinstance(params, AutoEncoderParams):
        return None
    return as_input(jnp.full((count,), time, jnp.float32), params)
