"""Encodes images to the posterior mean and decodes them again.  Any size; pads to the model's factor."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from flax_vae.autoencoder import Model
from flax_vae.conditioning import same_time
from flax_vae.convert.architecture import Architecture, AutoEncoderParams
from flax_vae.images import pad_to_factor, padded_size, to_float
from flax_vae.inference.banded_decode import decode_in_bands

_LARGE_MAP = 1 << 30


class Reconstruction(NamedTuple):
    """Reconstructed images and their posteriors.

    Attributes:
      images: Reconstructions, nominally in [-1, 1], float32, with the size of the originals.
      mean: Means of the posteriors of the padded images, not scaled; the raw latents of a model without posteriors.
      logvar: Log-variances of the posteriors, or None.
    """

    images: Float[np.ndarray, "b h w 3"]
    mean: Float[np.ndarray, "b H W z"]
    logvar: Float[np.ndarray, "b H W z"] | None


def reconstruct(
    model: Model,
    params: Any,
    images: UInt8[np.ndarray, "b h w 3"],
    time: float | None = None,
    *,
    in_bands: bool = False,
    mesh: Mesh | None = None,
) -> Reconstruction:
    """Encodes images to the mode of the posterior, or to the latent of a model without one, and decodes it.

    Images are padded to multiples of the model's factor by repeating their last row and column, and cropped again.  A
    program of the encoder and one of the decoder are compiled for every image shape.

    Args:
      model: Autoencoder.
      params: Parameters of the model.
      images: 8-bit RGB images of any height and width.
      time: Time of all images, for models that are conditioned on a time.
      in_bands: Whether to decode in bounded memory, which is slower; see `flax_vae.decode_in_bands`.
      mesh: Devices of this process that hold `params` and divide the images evenly; None for one device.  Each device
        computes its images as it computes them alone, to the last bit.

    Returns:
      Reconstructions of the size of the images, and the posteriors.

    Raises:
      UserError: If the time is missing, or the model takes none.
      ValueError: If the model's images are not RGB.
    """
    height, width = images.shape[1:3]
    x, condition = _inputs(model, images, time, mesh)
    z, mean, logvar = _encode(model, mesh, params, x, condition)
    if in_bands:
        decoded = decode_in_bands(model, params, z, condition)
    else:
        decoded = jax.device_get(_decode(model, mesh, params, z, condition))
    return Reconstruction(decoded[:, :height, :width].astype(np.float32), *jax.device_get((mean, logvar)))


def encode_means(
    model: Model,
    params: Any,
    images: UInt8[np.ndarray, "b h w 3"],
    time: float | None = None,
    *,
    mesh: Mesh | None = None,
) -> Float[np.ndarray, "b H W z"]:
    """Returns the means that `reconstruct` returns, by the same program of the encoder, without decoding them.

    Args:
      model: Autoencoder.
      params: Parameters of the model.
      images: 8-bit RGB images of any height and width.
      time: Time of all images, for models that are conditioned on a time.
      mesh: Devices of this process; see `reconstruct`.

    Raises:
      UserError: As for `reconstruct`.
      ValueError: As for `reconstruct`.
    """
    return jax.device_get(_encode(model, mesh, params, *_inputs(model, images, time, mesh))[1])


def _inputs(model: Model, images: np.ndarray, time: float | None, mesh: Mesh | None) -> tuple[Any, Any]:
    """Returns images, padded to the model's factor, and their times, on the devices."""
    condition = same_time(len(images), time, model.params)
    x = to_float(pad_to_factor(images, model.params.factor))
    if mesh is None:
        return x, condition
    return jax.device_put((x, condition), NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def needs_bands(params: Architecture, height: int, width: int, dtype: Dtype = jnp.float32) -> bool:
    """Returns whether the decoder's largest feature map of an image takes more than 1 GiB.

    For FLUX.1 it does beyond 1024 x 1024 pixels.  Decoding at once holds several such maps; `flax_vae.decode_in_bands`
    avoids that, but for tiny autoencoders, of which this is never true.

    Args:
      params: Architecture.
      height: Height of the image in pixels.
      width: Width of the image in pixels.
      dtype: Computation dtype.
    """
    if not isinstance(params, AutoEncoderParams):
        return False
    rows, columns = padded_size(height, width, params.factor)
    # The first map at full resolution still has the channels of the level below, if there is one.
    channels = params.up_widths[min(1, params.num_levels - 1)]
    return rows * columns * channels * jnp.dtype(dtype).itemsize > _LARGE_MAP


@jax.jit(static_argnums=(0, 1))
def _encode(
    model: Model, mesh: Mesh | None, params: Any, images: Array, time: Array | None
) -> tuple[Array, Array, Array | None]:
    return _on_each(mesh, partial(_encoded, model))(params, images, time)


@jax.jit(static_argnums=(0, 1))
def _decode(model: Model, mesh: Mesh | None, params: Any, z: Array, time: Array | None) -> Array:
    return _on_each(mesh, partial(_decoded, model))(params, z, time)


def _on_each(mesh: Mesh | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function of one device for the images of all devices of a mesh."""
    if mesh is None:
        return function
    images = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), images, images), out_specs=images)


def _encoded(model: Model, params: Any, images: Array, time: Array | None) -> tuple[Array, Array, Array | None]:
    if not model.params.has_posterior:
        z = cast(Array, model.apply({"params": params}, images, time, method="encode"))
        return z, cast(Array, model.apply({"params": params}, z, method="unscale")), None
    posterior = cast(Any, model.apply({"params": params}, images, time, method="posterior"))
    z = cast(Array, model.apply({"params": params}, posterior.mode(), method="scale"))
    return z, posterior.mean, posterior.logvar


def _decoded(model: Model, params: Any, z: Array, time: Array | None) -> Array:
    return cast(Array, model.apply({"params": params}, z, time, method="decode"))
