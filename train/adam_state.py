"""Reads and writes Adam's moments in an optax state; `flax_vae.convert.table.adam` converts them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flax_vae.convert.table import AdamState


def read_adam_state(opt_state: Any) -> AdamState:
    """Returns Adam's step count and moments, wherever Adam is in a chain.

    Raises:
      ValueError: If the state does not hold exactly one Adam state.
    """
    state = _adam(opt_state)
    return AdamState(int(np.asarray(state.count)), *jax.device_get((state.mu, state.nu)))


def write_adam_state(opt_state: Any, moments: AdamState) -> Any:
    """Returns the state with other moments, and every step count in it, such as a schedule's, set to theirs.

    Raises:
      ValueError: If the state does not hold exactly one Adam state.
    """
    state = _adam(opt_state)
    mu, nu = (
        jax.tree.map(lambda old, new: jnp.array(new, jnp.asarray(old).dtype), old, new)
        for old, new in ((state.mu, moments.mu), (state.nu, moments.nu))
    )
    count = jnp.asarray(moments.count, jnp.asarray(state.count).dtype)
    return optax.tree.set(opt_state, mu=mu, nu=nu, count=count)


def _adam(opt_state: Any) -> optax.ScaleByAdamState:
    found = [
        node
        for node in jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState))
        if isinstance(node, optax.ScaleByAdamState)
    ]
    if len(found) != 1:
        raise ValueError(f"the optimiser's state holds {len(found)} Adam states; expected exactly one")
    return found[0]
