"""Images of any size through a model and back: the way by the posterior's mean, without noise."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jaxtyping import Array, Float, UInt8

from flax_vae.autoencoder import AutoEncoder
from flax_vae.conditioning import same_time
from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.images import pad_to_factor, padded_size, to_float
from flax_vae.inference.banded_decode import decode_in_bands

_LARGE_MAP = 1 << 30


class Reconstruction(NamedTuple):
    """What a model made of images.

    Attributes:
      images: nominally in [-1, 1], float32, of the originals' size.
      mean: of the posteriors, raw, of the images with their padding.
      logvar: the same.
    """

    images: Float[np.ndarray, "b h w 3"]
    mean: Float[np.ndarray, "b H W z"]
    logvar: Float[np.ndarray, "b H W z"]


def reconstruct(
    model: AutoEncoder,
    params: Any,
    images: UInt8[np.ndarray, "b h w 3"],
    time: float | None = None,
    *,
    in_bands: bool = False,
) -> Reconstruction:
    """Encodes to the mode of the posterior and decodes again.

    Images are padded to multiples of the model's factor by repeating their last row and column, and cropped again.  A
    program is compiled for every shape that there is.

    Args:
      model: the autoencoder.
      params: its parameters.
      images: 8-bit RGB, of any height and width.
      time: the condition of a model that takes one, the same for all images.
      in_bands: decode in bounded memory, slower; see `flax_vae.decode_in_bands`.

    Raises:
      UserError: If the time is missing or superfluous.
      ValueError: If the model's images are not RGB.
    """
    height, width = images.shape[1:3]
    condition = same_time(len(images), time, model.params)
    x = to_float(pad_to_factor(images, model.params.factor))
    z, mean, logvar = _encode(model, params, x, condition)
    if in_bands:
        decoded = decode_in_bands(model, params, z, condition)
    else:
        decoded = jax.device_get(_decode(model, params, z, condition))
    return Reconstruction(decoded[:, :height, :width].astype(np.float32), *jax.device_get((mean, logvar)))


def needs_bands(record: AutoEncoderParams, height: int, width: int, dtype: Dtype = jnp.float32) -> bool:
    """Whether the decoder's largest map of one such image takes more than 1 GiB: FLUX.1's beyond 1024 x 1024 pixels.

    Decoded whole, several such maps exist at a time; see `flax_vae.decode_in_bands` for what is done instead.
    """
    rows, columns = padded_size(height, width, record.factor)
    # At full size first come the channels of the level below, where there is one.
    channels = record.ch * record.ch_mult[min(1, len(record.ch_mult) - 1)]
    return rows * columns * channels * jnp.dtype(dtype).itemsize > _LARGE_MAP


@jax.jit(static_argnums=0)
def _encode(model: AutoEncoder, params: Any, images: Array, time: Array | None) -> tuple[Array, Array, Array]:
    posterior = cast(Any, model.apply({"params": params}, images, time, method="posterior"))
    z = cast(Array, model.apply({"params": params}, posterior.mode(), method="scale"))
    return z, posterior.mean, posterior.logvar


@jax.jit(static_argnums=0)
def _decode(model: AutoEncoder, params: Any, z: Array, time: Array | None) -> Array:
    return cast(Array, model.apply({"params": params}, z, time, method="decode"))
