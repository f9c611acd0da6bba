"""The training state: everything that changes from step to step."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from flax_vae.autoencoder import Model, init_params
from flax_vae.convert.architecture import require_posterior
from flax_vae.convert.table import flatten, unflatten
from flax_vae.train.config import trained_paths
from flax_vae.train.identity_init import identity_init

_LOGVAR = "logvar"


@struct.dataclass
class DiscriminatorState:
    """Discriminator state: parameters, batch statistics and optimiser state.

    Attributes:
      params: Parameters of the discriminator.
      batch_stats: Running statistics of its norms; training does not use them.
      opt_state: State of its optimiser.
    """

    params: Any
    batch_stats: Any
    opt_state: optax.OptState


@struct.dataclass
class TrainState:
    """Everything that a checkpoint holds.  Noise and crops are functions of the step, so no keys or iterators are here.

    Attributes:
      step: Number of batches processed.
      skipped: Number of updates skipped because they were not finite.
      in_a_row: Number of consecutive skipped updates up to now.
      params: Parameters of the model.
      logvar: Log-variance of the reconstruction, used by the loss.
      opt_state: State of the optimiser.
      ema: Moving average of the trained parameters, or None.
      discriminator: State of the discriminator, or None.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    in_a_row: Int[Array, ""]
    params: dict[str, Any]
    logvar: Float[Array, ""]
    opt_state: optax.OptState
    ema: dict[str, Any] | None = None
    discriminator: DiscriminatorState | None = None

    def eval_params(self) -> dict[str, Any]:
        """Returns the parameters to evaluate and to export: the moving average, if one is kept."""
        return self.params if self.ema is None else with_part(self.params, self.ema)


def trained_part(params: dict[str, Any], paths: Collection[str]) -> dict[str, Any]:
    """Returns the trained part of the model's parameters; `with_part` puts it back.

    Args:
      params: Parameters.
      paths: Paths of the leaves that are trained, such as `TrainConfig.trained`.
    """
    return unflatten({path: leaf for path, leaf in flatten(params).items() if path in paths})


def with_part(params: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Returns parameters of which a part is replaced."""
    return unflatten(flatten(params) | flatten(part))


def with_logvar(part: dict[str, Any], logvar: Any, learn_logvar: bool) -> dict[str, Any]:
    """Returns the tree that the optimiser updates: the trained part and, if it is trained, the loss's `logvar`."""
    return {**part, _LOGVAR: logvar} if learn_logvar else part


def split_logvar(tree: dict[str, Any], logvar: Any) -> tuple[dict[str, Any], Any]:
    """Returns the trained part and `logvar`; the inverse of `with_logvar`."""
    return {name: part for name, part in tree.items() if name != _LOGVAR}, tree.get(_LOGVAR, logvar)


def create_state(
    model: Model,
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
    """Returns the state before the first update, as a pure function of its arguments.

    Args:
      model: Autoencoder.
      optimizer: Optimiser of its parameters.
      seed: Seed of the random weights.
      params: Initial weights; None for random ones.  Parts of the model that are missing get random ones too.
      identity: Whether to apply `flax_vae.train.identity_init` to random weights.
      trainable: Weights that are trained; see `TrainConfig.trainable`.
      logvar: Initial log-variance of the reconstruction.
      learn_logvar: Whether the log-variance is trained too.
      average: Whether a moving average is kept.
      discriminator: State of the discriminator, if there is one.
    """
    if params is None or "decoder" not in params:
        given = params or {}
        params = init_params(model, jax.random.key(seed))
        if identity:
            params = identity_init(params, require_posterior(model.params))
        params = with_part(params, given)
    part = trained_part(params, trained_paths(model.params, trainable))
    start = jnp.asarray(logvar, jnp.float32)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        in_a_row=jnp.zeros((), jnp.int32),
        params=params,
        logvar=start,
        opt_state=optimizer.init(with_logvar(part, start, learn_logvar)),
        # A copy, because one buffer cannot be donated to the step twice.
        ema=jax.tree.map(jnp.copy, part) if average else None,
        discriminator=discriminator,
    )
