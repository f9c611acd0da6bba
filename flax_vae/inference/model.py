"""Loads the model of a command."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from flax_vae.autoencoder import Model
from flax_vae.errors import UserError
from flax_vae.finite import require_finite
from flax_vae.loading import from_pretrained
from flax_vae.ops import require_devices


def load_model(
    path: str, preset: str | None, dtype: str, *, raw_weights: bool = False, rgb: bool = False
) -> tuple[Model, dict[str, Any]]:
    """Loads a model with parameters in float32.

    Args:
      path: Path of the weights; see `flax_vae.from_pretrained`.
      preset: Name of the architecture; see `flax_vae.from_pretrained`.
      dtype: Computation dtype.
      raw_weights: Whether to take weights instead of their moving average; see `flax_vae.from_pretrained`.
      rgb: Whether the model must take and give images of three channels.

    Returns:
      Model and parameters.

    Raises:
      FlaxVaeError: If the weights are not those of an autoencoder or not finite, the preset is unknown, or the model is
        not for RGB images although `rgb` is set.
      FileNotFoundError: If the file does not exist.
    """
    require_devices()
    model, params = from_pretrained(
        Path(path), preset, dtype=jnp.dtype(dtype), param_dtype=jnp.float32, raw_weights=raw_weights
    )
    require_finite(params, path)
    channels = model.params.in_channels, model.params.out_ch
    if rgb and channels != (3, 3):
        raise UserError(f"{path} takes {channels[0]} and gives {channels[1]} channels; images are read as RGB, three")
    return model, params
