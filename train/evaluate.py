"""How good a model is on the held-out photograph: reconstructed tile by tile, measured as a whole."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from flax_vae import AutoEncoder
from train.data import to_float, to_uint8
from train.metrics import psnr, ssim
from train.parallel import Parallel

TILE = 64
_TILES_AT_ONCE = 24


class Evaluation(NamedTuple):
    """A photograph, what the model made of it, and how close that is.

    Attributes:
      original: 8-bit RGB.
      reconstruction: of the posterior's mode, 8-bit RGB, of the same size.
      scores: `psnr` in decibels and `ssim`, over the whole photograph.
    """

    original: UInt8[np.ndarray, "h w 3"]
    reconstruction: UInt8[np.ndarray, "h w 3"]
    scores: dict[str, float]


class Evaluator:
    """Evaluates parameters on one photograph."""

    def __init__(self, model: AutoEncoder, parallel: Parallel, photograph: UInt8[np.ndarray, "h w 3"]):
        self._photograph = photograph
        self._tile = max(TILE, model.params.factor)  # both are powers of two: one divides the other
        self._parallel = parallel
        self._reconstruct = parallel.compile_map(_reconstructor(model))

    def __call__(self, params: Any) -> Evaluation:
        """Reconstructs the photograph in tiles of 64 x 64 (its border repeated up to whole ones) and compares."""
        tiles = to_tiles(self._photograph, self._tile)
        # Always the same number at a time: one compilation, bounded memory, and even shares for the devices.
        count = -(-_TILES_AT_ONCE // len(self._parallel.devices)) * len(self._parallel.devices)
        padded = np.pad(tiles, ((0, -len(tiles) % count), (0, 0), (0, 0), (0, 0)), mode="edge")
        done = [self._run(params, padded[first : first + count]) for first in range(0, len(padded), count)]
        height, width, _ = self._photograph.shape
        reconstruction = from_tiles(to_uint8(np.concatenate(done)[: len(tiles)]), height, width)
        scores = {"psnr": psnr(reconstruction, self._photograph), "ssim": ssim(reconstruction, self._photograph)}
        return Evaluation(self._photograph, reconstruction, scores)

    def _run(self, params: Any, tiles: UInt8[np.ndarray, "n t t 3"]) -> Float[np.ndarray, "n t t 3"]:
        batch = jax.device_put(to_float(tiles), self._parallel.split)
        return jax.device_get(self._reconstruct(params, batch))


def to_tiles(image: UInt8[np.ndarray, "h w c"], tile: int) -> UInt8[np.ndarray, "n t t c"]:
    """Cuts an image into square tiles, row by row; its border is repeated up to whole tiles."""
    height, width, channels = image.shape
    image = np.pad(image, ((0, -height % tile), (0, -width % tile), (0, 0)), mode="edge")
    rows, columns = image.shape[0] // tile, image.shape[1] // tile
    tiles = image.reshape(rows, tile, columns, tile, channels).swapaxes(1, 2)
    return tiles.reshape(rows * columns, tile, tile, channels)


def from_tiles(tiles: UInt8[np.ndarray, "n t t c"], height: int, width: int) -> UInt8[np.ndarray, "h w c"]:
    """The inverse of `to_tiles`: the image of that height and width."""
    tile, channels = tiles.shape[1], tiles.shape[3]
    columns = -(-width // tile)
    rows = tiles.reshape(-1, columns, tile, tile, channels).swapaxes(1, 2)
    return rows.reshape(-1, columns * tile, channels)[:height, :width]


def _reconstructor(model: AutoEncoder) -> Callable[[Any, Array], Array]:
    def reconstruct(params: Any, images: Float[Array, "b h w c"]) -> Any:
        z = model.apply({"params": params}, images, sample=False, method="encode")
        return model.apply({"params": params}, z, method="decode")

    return reconstruct
