"""Samples times for models that are conditioned on one."""

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from flax_vae.conditioning import as_input
from flax_vae.convert.architecture import Architecture, AutoEncoderParams
from flax_vae.train.config import TimeConfig

_NO_EXAMPLE = 2**32 - 1  # no index of an example, so that times and noise use different keys


def sample_times(
    key: PRNGKeyArray, index: Int[Array, " b"], params: Architecture, config: TimeConfig
) -> Float[Array, "b ..."] | None:
    """Returns a time for every example, in the form that the model takes; None for a model without time.

    The times do not depend on the number of devices.

    Args:
      key: Key of this update.
      index: Index of each example in the whole batch.
      params: Architecture.
      config: Sampler of the times and its range.

    Source: Esser et al. 2024, section 3.1, for the logit-normal sampler.
    """
    if not isinstance(params, AutoEncoderParams) or params.time_emb_dim is None:
        return None
    key = jax.random.fold_in(key, _NO_EXAMPLE)
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(index)
    if config.sampler == "uniform":
        fraction = jax.vmap(jax.random.uniform)(keys)
    else:
        fraction = jax.nn.sigmoid(jax.vmap(jax.random.normal)(keys))
    return as_input(config.low + (config.high - config.low) * fraction, params)
