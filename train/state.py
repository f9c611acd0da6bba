"""What changes from step to step, and nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from flax_vae import AutoEncoder, init_params
from flax_vae.train.identity_init import identity_init

# Statistics of the latents are measured, not learned.  What encodes, or is shared with what encodes, stays as it is
# where only the decoder is trained.
_FROZEN = {"all": {"bn"}, "decoder": {"bn", "encoder", "quant_conv", "reg", "time_embed"}}
_LOGVAR = "logvar"


@struct.dataclass
class DiscriminatorState:
    """The other player's share of the state.

    Attributes:
      params: of the discriminator.
      batch_stats: running statistics of its norms; they take no part in training.
      opt_state: of its optimiser.
    """

    params: Any
    batch_stats: Any
    opt_state: optax.OptState


@struct.dataclass
class TrainState:
    """All that a checkpoint must hold.  Noise and crops follow from the step, so neither keys nor iterators are here.

    Attributes:
      step: batches seen.
      skipped: updates that were left out because they gave no finite numbers.
      in_a_row: how many of those were the last ones.
      params: of the model.
      logvar: logarithm of the variance of the reconstruction; a number of the loss.
      opt_state: of the optimiser.
      ema: moving average of the trained weights, or None.
      discriminator: None where there is none.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    in_a_row: Int[Array, ""]
    params: dict[str, Any]
    logvar: Float[Array, ""]
    opt_state: optax.OptState
    ema: dict[str, Any] | None = None
    discriminator: DiscriminatorState | None = None

    def averaged(self) -> dict[str, Any]:
        """The model's parameters to evaluate and to export: the moving average, where one is kept."""
        return self.params if self.ema is None else {**self.params, **self.ema}


def trained_part(params: dict[str, Any], trainable: str) -> dict[str, Any]:
    """Those of the model's parameters that learn; `{**params, **part}` puts them back."""
    return {name: part for name, part in params.items() if name not in _FROZEN[trainable]}


def learned(part: dict[str, Any], logvar: Any, learn_logvar: bool) -> dict[str, Any]:
    """What the optimiser works on: the trained weights and, beside them, the loss's own number if it learns."""
    return {**part, _LOGVAR: logvar} if learn_logvar else part


def unlearned(tree: dict[str, Any], logvar: Any) -> tuple[dict[str, Any], Any]:
    """The inverse of `learned`: the trained weights and the loss's number."""
    return {name: part for name, part in tree.items() if name != _LOGVAR}, tree.get(_LOGVAR, logvar)


def create_state(
    model: AutoEncoder,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    params: dict[str, Any] | None = None,
    identity: bool = False,
    trainable: str = "all",
    logvar: float = 0.0,
    learn_logvar: bool = False,
    average: bool = False,
    discriminator: DiscriminatorState | None = None,
) -> TrainState:
    """The state before the first update: a pure function of its arguments.

    Args:
      model: the autoencoder.
      optimizer: what will update its parameters.
      seed: of the random weights.
      params: weights to begin with instead.
      identity: change random weights so that a small model learns faster; see `flax_vae.train.identity_init`.
      trainable: which part learns, `all` or `decoder`.
      logvar: the loss's number.
      learn_logvar: whether the optimiser will update it too.
      average: whether a moving average is kept.
      discriminator: the other player, if there is one.
    """
    if params is None:
        params = init_params(model, jax.random.key(seed))
        if identity:
            params = identity_init(params, model.params)
    part = trained_part(params, trainable)
    start = jnp.asarray(logvar, jnp.float32)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        in_a_row=jnp.zeros((), jnp.int32),
        params=params,
        logvar=start,
        opt_state=optimizer.init(learned(part, start, learn_logvar)),
        # A copy: two names of one buffer could not both be given away to the step.
        ema=jax.tree.map(jnp.copy, part) if average else None,
        discriminator=discriminator,
    )
