"""Encodes and decodes large images on several devices, each of which holds some of the rows.

The inputs are sharded over a mesh of devices, and the compiler partitions every operation accordingly: convolutions
exchange rows next to a boundary with the neighbouring device, normalisations sum over all devices, and attention
gathers keys and values.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from flax_vae.autoencoder import Model
from flax_vae.convert.architecture import check_image
from flax_vae.convert.errors import ArgumentError

ENCODER_PARAMS = ("encoder", "quant_conv")  # parameters that only encoding uses
DECODER_PARAMS = ("decoder", "post_quant_conv")  # parameters that only decoding uses


def decode_over_devices(
    model: Model,
    params: dict[str, Any],
    z: Float[Array | np.ndarray, "b h w c"],
    time: Float[Array | np.ndarray, "b ..."] | None = None,
    *,
    devices: Sequence[Any] | None = None,
) -> Float[Array, "b h*f w*f c"]:
    """Decodes scaled latents, with rows split over devices.

    Args:
      model: Autoencoder.
      params: Parameters of the model, replicated on all devices; those of the encoder may be missing.
      z: Scaled latents, whose height is a multiple of the number of devices.
      time: Time of each image; see `AutoEncoder`.
      devices: `jax.Device`s to use; None uses all.

    Returns:
      Images, nominally in [-1, 1], with rows split over the devices.

    Raises:
      ValueError: If the height is not a multiple of the number of devices, or as in `AutoEncoder.decode`.
    """
    devices = _devices(devices)
    _check_rows("latents", z.shape, 1, len(devices))
    params = {name: value for name, value in params.items() if name not in ENCODER_PARAMS}
    return _over_rows(model, "decode", devices, params, z, time)


def moments_over_devices(
    model: Model,
    params: dict[str, Any],
    x: Float[Array | np.ndarray, "b h w c"],
    time: Float[Array | np.ndarray, "b ..."] | None = None,
    *,
    devices: Sequence[Any] | None = None,
) -> Float[Array, "b h/f w/f 2*z"]:
    """Computes `AutoEncoder.moments`, with rows split over devices.

    Args:
      model: Autoencoder.
      params: Parameters of the model, replicated on all devices; those of the decoder may be missing.
      x: Images in [-1, 1], whose height is a multiple of the model's factor times the number of devices.
      time: Time of each image; see `AutoEncoder`.
      devices: `jax.Device`s to use; None uses all.

    Returns:
      Moments of the posterior, with rows split over the devices.

    Raises:
      ValueError: If the height is not such a multiple, or as in `AutoEncoder.moments`.
    """
    devices = _devices(devices)
    check_image(model.params, x, "b h w c", moments_only=True)
    _check_rows("images", x.shape, model.params.factor // model.params.patch, len(devices))
    params = {name: value for name, value in params.items() if name not in DECODER_PARAMS}
    return _over_rows(model, "moments", devices, params, x, time)


def _devices(devices: Sequence[Any] | None) -> tuple[Any, ...]:
    return tuple(jax.devices() if devices is None else devices)


def _check_rows(what: str, shape: tuple[int, ...], factor: int, count: int) -> None:
    if len(shape) == 4 and shape[1] % (factor * count):
        raise ArgumentError(
            f"{what} of {shape[1]} rows cannot be split over {count} devices: their number must be a multiple of "
            f"{factor * count}; pad the image, or pass fewer devices="
        )


# Any, because the type of linen modules does not declare that they are hashable.
def _over_rows(model: Any, method: str, devices: tuple[Any, ...], params: Any, x: Any, time: Any) -> Array:
    replicated, rows, run = _compiled(model, method, devices)
    # Arrays that have this sharding already are not copied.
    params, time = jax.device_put((params, time), replicated)
    return run(params, jax.device_put(jnp.asarray(x), rows), time)


@lru_cache(maxsize=8)
def _compiled(model: Model, method: str, devices: tuple[Any, ...]):
    mesh = Mesh(np.asarray(devices), ("rows",))
    replicated, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "rows"))

    def run(params, x, time):
        return model.apply({"params": params}, x, time, method=method)

    return replicated, rows, jax.jit(run, in_shardings=(replicated, rows, replicated), out_shardings=rows)
