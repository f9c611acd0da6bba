"""Samples times for models that are conditioned on one."""

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from flax_vae.conditioning import as_input
from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.train.config import TimeConfig

_NO_EXAMPLE = 2**32 - 1  # apart from the noise of every example


def sample_times(
    key: PRNGKeyArray, index: Int[Array, " b"], params: AutoEncoderParams, config: TimeConfig
) -> Float[Array, "b ..."] | None:
    """A time for every example, in the form that the model takes; None for a model without time.

    Args:
      key: of this update.
      index: number of each example in the whole batch: on any number of devices it has the same time.
      params: the architecture.
      config: the sampler.

    Source: logit-normal: Esser et al. 2024, section 3.1.
    """
    if params.time_emb_dim is None:
        return None
    key = jax.random.fold_in(key, _NO_EXAMPLE)
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(index)
    if config.sampler == "uniform":
        share = jax.vmap(jax.random.uniform)(keys)
    else:
        share = jax.nn.sigmoid(jax.vmap(jax.random.normal)(keys))
    return as_input(config.low + (config.high - config.low) * share, params)
