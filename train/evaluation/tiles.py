"""How good a model is on the held-out photograph: reconstructed tile by tile, measured as a whole."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from flax_vae import AutoEncoder
from flax_vae.images import pad_to_factor, psnr, ssim, to_float, to_uint8
from flax_vae.train.conditioning import fixed_time
from flax_vae.train.config import TrainConfig
from flax_vae.train.devices import Parallel
from flax_vae.train.errors import NotFiniteError
from flax_vae.train.losses import lpips

TILE = 64
_TILES_AT_ONCE = 24


class TileScores(NamedTuple):
    """A photograph, what the model made of it, and how close that is.

    Attributes:
      original: 8-bit RGB.
      reconstruction: of the posterior's mode, 8-bit RGB, of the same size.
      scores: `psnr` in decibels, `ssim` and, where asked for, `lpips`, over the whole photograph.
    """

    original: UInt8[np.ndarray, "h w 3"]
    reconstruction: UInt8[np.ndarray, "h w 3"]
    scores: dict[str, float]


class Evaluator:
    """Evaluates parameters on one photograph, with the devices of this process."""

    def __init__(
        self,
        model: AutoEncoder,
        parallel: Parallel,
        photograph: UInt8[np.ndarray, "h w 3"],
        config: TrainConfig,
        lpips_weights: dict[str, Any] | None = None,
    ):
        """Compiles nothing yet.

        Args:
          model: the autoencoder.
          parallel: whose devices share the work.
          photograph: 8-bit RGB.
          config: of the run: the time to evaluate at, the network of LPIPS.
          lpips_weights: of that network, where the scores are to have it.
        """
        self._photograph = photograph
        self._tile = max(TILE, model.params.factor)  # both are powers of two: one divides the other
        self._count = -(-_TILES_AT_ONCE // len(parallel.local_devices)) * len(parallel.local_devices)
        self._reconstruct = parallel.compile_local(_reconstructor(model, config))
        self._lpips_weights = (
            None if lpips_weights is None else jax.device_put(lpips_weights, parallel.local_devices[0])
        )
        self._lpips = jax.jit(lambda weights, a, b: lpips(weights, a, b, net=config.loss.lpips_net)[0])

    def __call__(self, params: Any) -> TileScores:
        """Reconstructs the photograph in tiles of 64 x 64 (its border repeated up to whole ones) and compares.

        Args:
          params: Parameters on this process's devices; see `Parallel.gather`.

        Raises:
          NotFiniteError: If the reconstruction holds NaN or infinite values.
        """
        tiles = to_tiles(self._photograph, self._tile)
        # Always the same number at a time: one compilation, bounded memory, and even shares for the devices.
        padded = np.pad(tiles, ((0, -len(tiles) % self._count), (0, 0), (0, 0), (0, 0)), mode="edge")
        firsts = range(0, len(padded), self._count)
        done = [self._reconstruct(params, to_float(padded[first : first + self._count])) for first in firsts]
        made = np.concatenate(done)[: len(tiles)]
        if not np.isfinite(made).all():
            raise NotFiniteError("the reconstruction of the held-out photograph is not finite, so it has no scores")
        height, width, _ = self._photograph.shape
        reconstruction = from_tiles(to_uint8(made), height, width)
        scores = {"psnr": psnr(reconstruction, self._photograph), "ssim": ssim(reconstruction, self._photograph)}
        if self._lpips_weights is not None:
            pair = jax.device_put((to_float(reconstruction[None]), to_float(self._photograph[None])))
            scores["lpips"] = float(jax.device_get(self._lpips(self._lpips_weights, *pair)))
        return TileScores(self._photograph, reconstruction, scores)


def to_tiles(image: UInt8[np.ndarray, "h w c"], tile: int) -> UInt8[np.ndarray, "n t t c"]:
    """Cuts an image into square tiles, row by row; its border is repeated up to whole tiles."""
    height, width, channels = image.shape
    image = pad_to_factor(image, tile)
    rows, columns = image.shape[0] // tile, image.shape[1] // tile
    tiles = image.reshape(rows, tile, columns, tile, channels).swapaxes(1, 2)
    return tiles.reshape(rows * columns, tile, tile, channels)


def from_tiles(tiles: UInt8[np.ndarray, "n t t c"], height: int, width: int) -> UInt8[np.ndarray, "h w c"]:
    """The inverse of `to_tiles`: the image of that height and width."""
    tile, channels = tiles.shape[1], tiles.shape[3]
    columns = -(-width // tile)
    rows = tiles.reshape(-1, columns, tile, tile, channels).swapaxes(1, 2)
    return rows.reshape(-1, columns * tile, channels)[:height, :width]


def _reconstructor(model: AutoEncoder, config: TrainConfig) -> Callable[[Any, Array], Array]:
    def reconstruct(params: Any, images: Float[Array, "b h w c"]) -> Any:
        time = fixed_time(images.shape[0], model.params, config.time)
        z = model.apply({"params": params}, images, time, sample=False, method="encode")
        return model.apply({"params": params}, z, time, method="decode")

    return reconstruct
