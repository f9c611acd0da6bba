"""Reads and writes the state of Adam in an optax state; see `flax_vae.convert.table.adam`.

Twin: `torch_ref.adam_state`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flax_vae.convert.table import AdamState


def read_adam_state(opt_state: optax.OptState) -> AdamState:
    """Returns the optimizer's state of the model's parameters.

    Raises:
      ValueError: If the state does not hold exactly one Adam state.
    """
    state = _adam(opt_state)
    return AdamState(int(np.asarray(state.count)), *jax.device_get((state.mu, state.nu)))


def write_adam_state(opt_state: optax.OptState, state: AdamState) -> optax.OptState:
    """Sets the optimizer's state, so that its next update has number `state.count + 1`; inverts `read_adam_state`.

    A schedule of the learning rate keeps its own count.

    Raises:
      ValueError: If the state does not hold exactly one Adam state.
    """
    adam = _adam(opt_state)
    new = jax.tree.map(lambda old, new: jnp.array(new, jnp.asarray(old).dtype), adam, optax.ScaleByAdamState(*state))
    return jax.tree.map(lambda node: new if node is adam else node, opt_state, is_leaf=lambda node: node is adam)


def _adam(opt_state: optax.OptState) -> optax.ScaleByAdamState:
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(node)]
    if len(found) != 1:
        raise ValueError(f"the optimizer's state holds {len(found)} Adam states; expected exactly one")
    return found[0]
