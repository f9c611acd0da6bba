"""Large images on several devices: every device has some of the rows.

The model knows nothing of it.  Its inputs are laid out over a mesh of devices, and the compiler splits every operation
after them: convolutions exchange the rows next to a cut with the neighbours, normalisations sum over all devices, and
attention gathers keys and values.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from flax_vae.autoencoder import AutoEncoder
from flax_vae.convert.architecture import check_image
from flax_vae.convert.errors import ArgumentError

ENCODES = ("encoder", "quant_conv")  # the parameters that only encoding needs
DECODES = ("decoder", "post_quant_conv")


def decode_over_devices(
    model: AutoEncoder,
    params: dict[str, Any],
    z: Float[Array | np.ndarray, "b h w c"],
    time: Float[Array | np.ndarray, "b ..."] | None = None,
    *,
    devices: Sequence[Any] | None = None,
) -> Float[Array, "b h*f w*f c"]:
    """Returns the images, nominally in [-1, 1], of scaled latents, their rows spread over the devices.

    Args:
      model: the autoencoder.
      params: its parameters, of which each device gets a copy of the decoder's; those of the encoder may be missing.
      z: scaled latents, whose h is a multiple of the number of devices.
      time: see `AutoEncoder`.
      devices: `jax.Device`s; None takes all there are.

    Raises:
      ValueError: If h does not divide by the number of devices, and as `AutoEncoder.decode`.
    """
    devices = _devices(devices)
    _check_rows("latents", z.shape, 1, len(devices))
    params = {name: value for name, value in params.items() if name not in ENCODES}
    return _over_rows(model, "decode", devices, params, z, time)


def moments_over_devices(
    model: AutoEncoder,
    params: dict[str, Any],
    x: Float[Array | np.ndarray, "b h w c"],
    time: Float[Array | np.ndarray, "b ..."] | None = None,
    *,
    devices: Sequence[Any] | None = None,
) -> Float[Array, "b h/f w/f 2*z"]:
    """Returns what `AutoEncoder.moments` does, its rows spread over the devices.

    Args:
      model: the autoencoder.
      params: its parameters, of which each device gets a copy of the encoder's; those of the decoder may be missing.
      x: images in [-1, 1], whose h is a multiple of the model's factor times the number of devices.
      time: see `AutoEncoder`.
      devices: `jax.Device`s; None takes all there are.

    Raises:
      ValueError: If h does not divide so, and as `AutoEncoder.moments`.
    """
    devices = _devices(devices)
    check_image(model.params, x, "b h w c", moments_only=True)
    _check_rows("images", x.shape, model.params.factor // model.params.patch, len(devices))
    params = {name: value for name, value in params.items() if name not in DECODES}
    return _over_rows(model, "moments", devices, params, x, time)


def _devices(devices: Sequence[Any] | None) -> tuple[Any, ...]:
    return tuple(jax.devices() if devices is None else devices)


def _check_rows(what: str, shape: tuple[int, ...], factor: int, count: int) -> None:
    if len(shape) == 4 and shape[1] % (factor * count):
        raise ArgumentError(
            f"{what} of {shape[1]} rows cannot be split over {count} devices: their number must be a multiple of "
            f"{factor * count}; pad the image, or pass fewer devices="
        )


# Any: linen modules can be hashed, which their type does not say.
def _over_rows(model: Any, method: str, devices: tuple[Any, ...], params: Any, x: Any, time: Any) -> Array:
    whole, rows, run = _compiled(model, method, devices)
    # What already lies there as it should is not copied again.
    params, time = jax.device_put((params, time), whole)
    return run(params, jax.device_put(jnp.asarray(x), rows), time)


@lru_cache(maxsize=8)
def _compiled(model: AutoEncoder, method: str, devices: tuple[Any, ...]):
    mesh = Mesh(np.asarray(devices), ("rows",))
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(None, "rows"))

    def run(params, x, time):
        return model.apply({"params": params}, x, time, method=method)

    return whole, rows, jax.jit(run, in_shardings=(whole, rows, whole), out_shardings=rows)
