"""Encodes batches of images to the arrays that a data set stores."""

import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from flax_vae.autoencoder import AutoEncoder, Model
from flax_vae.conditioning import same_time
from flax_vae.convert.latents import Encoding
from flax_vae.inference import DECODER_PARAMS, DataParallel, moments_over_devices, rows_of


def weights_sha256(params: dict[str, Any], without: Collection[str]) -> str:
    """Returns the SHA-256 of weights: name, dtype, shape and values of each, in the order of their names.

    Args:
      params: Parameters of a model.
      without: Names of parts to ignore; `flax_vae.inference.DECODER_PARAMS` for a digest of the encoder.
    """
    digest = hashlib.sha256()
    counted = {name: value for name, value in params.items() if name not in without}
    leaves = ((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(counted))
    for path, leaf in sorted(leaves, key=lambda pair: pair[0]):
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def latent_noise(
    seed: int, entries: UInt32[Array | np.ndarray, " b"], shape: tuple[int, int, int]
) -> Float[Array, "b H W z"]:
    """Returns the standard normal noise of samples in float32, a pure function of seed, entry and shape.

    Args:
      seed: Seed of the data set.
      entries: `2 * number + flipped` of each sample, where `number` is the index of its image in the sorted list.
      shape: Height, width and channels of a raw latent.
    """
    key = jax.random.key(seed)
    return jax.vmap(lambda entry: jax.random.normal(jax.random.fold_in(key, entry), shape, jnp.float32))(entries)


class LatentEncoder:
    """Computes the stored arrays of a data set on all devices of this process.

    The images of a batch are distributed over the devices.  Results equal, bit for bit, those of
    `jax.jit(lambda params, x: model.apply({"params": params}, x, method="posterior"))` (or `"encode"`) for the images
    of one device, a batch of `compiled_size / devices`.  For other batch sizes the compiler may sum in another order,
    so that results agree up to rounding.

    Attributes:
      devices: Devices that compute.
    """

    def __init__(self, model: Model, params: dict[str, Any], encoding: Encoding, devices: Sequence[Any]):
        """Places the encoder's weights on the devices.

        Args:
          model: Autoencoder with the `dtype` of `encoding`.
          params: Parameters of the model; those of the decoder may be missing.
          encoding: Settings of the encoding.
          devices: `jax.Device`s of this process.

        Raises:
          UserError: If the model takes a time and `encoding` has none, or vice versa.
        """
        same_time(1, encoding.time, model.params)  # raises if the time does not fit the model
        self.devices = tuple(devices)
        self._model, self._encoding = model, encoding
        params = {name: value for name, value in params.items() if name not in DECODER_PARAMS}
        self._encode = DataParallel(self._whole, params, devices)
        self._finish = jax.jit(self._from_moments)

    def __call__(
        self, compiled_size: int, images: Float[np.ndarray, "b h w 3"], entries: UInt32[np.ndarray, " b"]
    ) -> dict[str, Array]:
        """Starts the computation of a batch.

        Args:
          compiled_size: Batch size of the compiled program; see `DataParallel`.
          images: At most `compiled_size` images in [-1, 1].
          entries: Indices of the entries; see `latent_noise`.

        Returns:
          Arrays by the names of `Encoding.parts`, `b h w c`, of at least as many images.
        """
        return self._encode(compiled_size, images, entries)

    def compile_in(self, thread: ThreadPoolExecutor, size: tuple[int, int, int]) -> Future[Any]:
        """Starts to compile the program of batches in another thread; see `DataParallel.compile_in`.

        Args:
          thread: Executor of a single thread.
          size: Batch size of the program, and height and width of the images.
        """
        compiled_size, height, width = size
        image = jax.ShapeDtypeStruct((height, width, self._model.params.in_channels), np.float32)
        return self._encode.compile_in(thread, compiled_size, image, jax.ShapeDtypeStruct((), np.uint32))

    @property
    def compiling(self) -> float:
        """Seconds that `compile_in` took in all."""
        return self._encode.compiling

    def encode_across_devices(
        self, image: Float[np.ndarray, "1 h w 3"], entries: UInt32[np.ndarray, " 1"]
    ) -> dict[str, Array]:
        """Encodes an image that is too large for one device, with its rows split over several devices."""
        architecture, params = self._model.params, self._encode.params
        devices = rows_of(self.devices, image.shape[1], architecture.factor // architecture.patch)
        time = same_time(1, self._encoding.time, architecture)
        moments = moments_over_devices(self._model, params, image, time, devices=devices)
        first = self.devices[0]
        return self._finish(*jax.device_put((params, moments, entries), first))

    def _whole(self, params: Any, images: Array, entries: Array) -> dict[str, Array]:
        time = same_time(images.shape[0], self._encoding.time, self._model.params)

        def run(model: Model) -> dict[str, Array]:
            return self._stored(model, model.moments(images, time), entries)

        return self._model.apply({"params": params}, method=run)  # pyright: ignore[reportReturnType]

    def _from_moments(self, params: Any, moments: Array, entries: Array) -> dict[str, Array]:
        def run(model: Model) -> dict[str, Array]:
            return self._stored(model, moments, entries)

        return self._model.apply({"params": params}, method=run)  # pyright: ignore[reportReturnType]

    def _stored(self, model: Model, moments: Array, entries: Array) -> dict[str, Array]:
        if not isinstance(model, AutoEncoder):  # its encoder gives the latent itself
            return {"latent": model.scale(moments)}
        posterior = model.reg.posterior(moments)
        if self._encoding.store == "moments":
            return {"mean": posterior.mean, "logvar": posterior.logvar}
        if self._encoding.store == "mean-std":
            return {"mean": posterior.mean, "std": posterior.std}
        if self._encoding.seed is None:
            return {"latent": model.scale(posterior.mode())}
        _, height, width, channels = posterior.mean.shape
        noise = latent_noise(self._encoding.seed, entries, (height, width, channels)).astype(posterior.mean.dtype)
        return {"latent": model.scale(posterior.sample(noise=noise))}
