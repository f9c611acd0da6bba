"""The model of a command that encodes or decodes."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from flax_vae.autoencoder import AutoEncoder
from flax_vae.errors import UserError
from flax_vae.finite import require_finite
from flax_vae.loading import from_pretrained
from flax_vae.ops import require_devices


def load_model(
    path: str, preset: str | None, dtype: str, *, raw_weights: bool = False
) -> tuple[AutoEncoder, dict[str, Any]]:
    """Returns the model and its parameters in float32, whatever the file holds.

    Args:
      path: see `flax_vae.from_pretrained`.
      preset: the same.
      dtype: of the computation.
      raw_weights: see `flax_vae.from_pretrained`.

    Raises:
      UserError: If the weights are not those of an autoencoder or not finite, or there is no such preset.
      FileNotFoundError: If there is no such file.
    """
    require_devices()
    try:
        model, params = from_pretrained(
            Path(path), preset, dtype=jnp.dtype(dtype), param_dtype=jnp.float32, raw_weights=raw_weights
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    require_finite(params, path)
    return model, params
