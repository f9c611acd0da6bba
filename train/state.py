"""What changes from step to step, and nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int

from flax_vae import AutoEncoder, init_params
from train.initial import make_transparent


@struct.dataclass
class TrainState:
    """All that a checkpoint must hold.  Noise and crops follow from the step, so neither keys nor iterators are here.

    Attributes:
      step: updates done.
      params: of the model.
      opt_state: of the optimiser.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: optax.OptState


def create_state(
    model: AutoEncoder, optimizer: optax.GradientTransformation, seed: int, *, transparent: bool = False
) -> TrainState:
    """The state before the first update: a pure function of the seed.

    Args:
      model: the autoencoder.
      optimizer: what will update its parameters.
      seed: of the random weights.
      transparent: change them so that a small model learns faster; see `train.initial`.
    """
    params = init_params(model, jax.random.key(seed))
    if transparent:
        params = make_transparent(params, model.params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))
