"""Times as models take them that are conditioned on one."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.embedding import sinusoidal_embedding
from flax_vae.errors import UserError


def as_input(time: Float[Array, " b"], params: AutoEncoderParams) -> Float[Array, "b ..."]:
    """One number per image as the model takes it: itself, or its sines and cosines where that is a vector."""
    assert params.time_emb_dim is not None
    return time if params.time_embedding == "sinusoidal" else sinusoidal_embedding(time, params.time_emb_dim)


def same_time(count: int, time: float | None, params: AutoEncoderParams) -> Float[Array, "b ..."] | None:
    """The same time for `count` images; None for a model without time.

    Raises:
      UserError: if the model takes a time and none is given, or takes none and one is given.
    """
    if (params.time_emb_dim is None) != (time is None):
        if time is None:
            raise UserError("the model is conditioned on a time, and none is given; say which: --time 0, for example")
        raise UserError(f"time={time:g} is given, and the model is not conditioned on any; leave it out")
    return None if time is None else as_input(jnp.full((count,), time, jnp.float32), params)
