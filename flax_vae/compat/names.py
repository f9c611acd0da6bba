"""Parameters under diffusers' Flax names, for the modules of this package."""

from typing import Any, Literal

import jax.numpy as jnp
from flax import linen as nn
from flax.core import Scope

from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.convert.table import expand, unflatten

LAYOUT = "diffusers-flax"

# As in `flax.linen`, so that one key initialises what it did in diffusers.
_INITIALIZERS = {
    "kernel": nn.initializers.lecun_normal(),
    "bias": nn.initializers.zeros,
    "scale": nn.initializers.ones,
}


def declare(module: nn.Module, half: Literal["encoder", "decoder"], params: AutoEncoderParams) -> dict[str, Any]:
    """Declares the parameters of a bound module under diffusers' names, and returns them under ours.

    Only reshapes lie between the two, so gradients and optimiser states have diffusers' names as well.

    Args:
      module: Module in whose scope the parameters lie.
      half: Half of the autoencoder that the module is.
      params: Architecture.

    Raises:
      flax.errors.ScopeParamNotFoundError: If a parameter is missing.
      flax.errors.ScopeParamShapeError: If a parameter is misshapen.
    """
    assert module.scope is not None
    scopes: dict[tuple[str, ...], Scope] = {(): module.scope}

    def scope(path: tuple[str, ...]) -> Scope:
        if path not in scopes:
            scopes[path] = scope(path[:-1]).push(path[-1], reuse=True)
        return scopes[path]

    leaves: dict[str, Any] = {}
    for row in expand(params, LAYOUT):
        top, *path, leaf = row.theirs.split("/")
        if top == half:
            array = scope(tuple(path)).param(leaf, _INITIALIZERS[leaf], row.torch_shape, jnp.float32)
            leaves[row.ours.removeprefix(f"{half}/")] = row.op.to_flax(array)
    return unflatten(leaves)
