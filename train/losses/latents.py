"""Regularisers of the latents: equivariance to scale and turns, noise, variance expansion.

Shapes: images `b h w c` in [-1, 1], latents `b h w z`.  All functions are pure and take plain arrays, so they work in
any training step, under `jit`, `pmap` and `shard_map`.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flax_vae.convert.errors import ArgumentError

QUARTERS = 4  # quarter turns after which an image is the same


def transform_pair(
    images: Float[Array, "b h w c"],
    latents: Float[Array, "b h2 w2 z"],
    size: tuple[int, int],
    turns: int | Int[Array, ""] = 0,
) -> tuple[Float[Array, "b h3 w3 c"], Float[Array, "b h4 w4 z"]]:
    """Reduces and turns images and their latents alike, for the equivariance regulariser (EQ).

    The decoder is trained to map the transformed latents to the transformed images: compute the usual losses of
    `decode(latents)` and `images` on this pair instead.  Every `size` is a shape, so each one that is used is compiled
    once; draw one of a few on the host.

    Args:
      images: Images.
      latents: Latents of the images.
      size: Height and width of the reduced latents, before they are turned; the images are reduced to the same
        multiple of it that they are of `latents`.
      turns: Number of quarter turns counter-clockwise.  An array needs square images, since a shape cannot depend on
        it.

    Returns:
      The images and the latents.

    Examples:
      >>> images, latents = transform_pair(jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 8, 8, 16)), (4, 6), turns=0)
      >>> images.shape, latents.shape
      ((1, 32, 48, 3), (1, 4, 6, 16))

    Raises:
      ValueError: If a size is larger than the latents', or the images' size is not a multiple of the latents'.

    Source: Kouzelis et al. 2025 (arXiv:2502.09509), eq. 4; zelaki/eqvae `autoencoder.py`, which draws the scale from
    {8..31}/32 and one, two or three turns, for half of the steps.
    """
    factors = tuple(a / b for a, b in zip(images.shape[1:3], latents.shape[1:3], strict=True))
    if any(factor % 1 for factor in factors):
        raise ArgumentError(
            f"images of {images.shape[1:3]} pixels are not a multiple of latents of {latents.shape[1:3]}; pass the "
            "latents of these images"
        )
    of_images = (size[0] * int(factors[0]), size[1] * int(factors[1]))
    latents = reduce_bilinear(latents, size)
    return turn(reduce_bilinear(images, of_images), turns), turn(latents, turns)


def reduce_bilinear(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Reduces images or latents by bilinear interpolation, without a filter against aliasing.

    Equals `torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)`.  It is computed as two
    products with small matrices, whose gradients are products too.

    Args:
      x: Images or latents.
      size: Height and width of the result, at most those of `x`.

    Raises:
      ValueError: If `size` is empty or larger than `x`.
    """
    if not all(0 < new <= old for new, old in zip(size, x.shape[1:3], strict=True)):
        raise ArgumentError(f"size={size} must be between (1, 1) and the size of the array, {x.shape[1:3]}", value=size)
    if size == x.shape[1:3]:
        return x
    rows, columns = (jnp.asarray(_weights(old, new), x.dtype) for old, new in zip(x.shape[1:3], size, strict=True))
    # An accelerator would otherwise round images to bfloat16 in a product.
    return jnp.einsum("bhwc,Hh,Ww->bHWc", x, rows, columns, precision=jax.lax.Precision.HIGHEST)


def turn(x: Float[Array, "b h w c"], turns: int | Int[Array, ""]) -> Float[Array, "b h2 w2 c"]:
    """Turns images or latents counter-clockwise by quarter turns.

    Args:
      x: Images or latents.
      turns: Number of quarter turns.

    Raises:
      ValueError: If `turns` is an array and `x` is not square.
    """
    if isinstance(turns, int | np.integer):
        return jnp.rot90(x, int(turns), axes=(1, 2))
    if x.shape[1] != x.shape[2]:
        raise ArgumentError(f"an array of turns needs square images, not {x.shape[1:3]}; pass an int")
    each = [lambda x, k=k: jnp.rot90(x, k, axes=(1, 2)) for k in range(QUARTERS)]
    return jax.lax.switch(turns % QUARTERS, each, x)


def add_noise(
    latents: Float[Array, "b h w z"],
    noise: Float[Array, "b h w z"],
    strength: Float[Array, " b"],
    largest: float,
) -> Float[Array, "b h w z"]:
    """Adds noise of a random deviation to each image's latents, which makes the decoder robust to a generator's errors.

    Args:
      latents: Latents, scaled to about unit deviation, as diffusion models take them.
      noise: Standard normal noise.
      strength: Uniform numbers in [0, 1], one for each image.
      largest: Largest standard deviation of the noise.

    Returns:
      Latents with noise.

    Source: Zheng et al. 2025 (arXiv:2510.11690), section 4.3; bytetriper/RAE `noise_tau`, 0.8 there.
    """
    deviation = (largest * strength).astype(latents.dtype)
    return latents + deviation.reshape(-1, 1, 1, 1) * noise


def variance_expansion(logvar: Float[Array, "b h w z"], delta: float = 1e-2) -> Float[Array, ""]:
    """Returns the mean of `1 / (variance + delta)` over all latent values, which keeps posteriors from collapsing.

    Args:
      logvar: Logarithm of the posterior's variance.
      delta: Number that bounds the loss of a variance of zero.

    Source: arXiv:2603.21085.
    """
    return jnp.mean(1.0 / (jnp.exp(logvar) + delta))


@lru_cache
def _weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Returns the matrix that interpolates `old` numbers linearly at the centres of `new` equal intervals."""
    centres = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    lower = centres.astype(int)
    upper = np.minimum(lower + 1, old - 1)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new), lower), 1 - (centres - lower))
    np.add.at(matrix, (np.arange(new), upper), centres - lower)
    return matrix
