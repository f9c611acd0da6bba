"""Distance of images in the features of any network, such as a user's own."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from flax_vae.convert.errors import ArgumentError
from flax_vae.train.losses.perceptual import to_unit_length

Features = Callable[[Float[Array, "b h w c"]], Sequence[Float[Array, "b ..."]]]


def feature_distance(features: Features, a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """Returns the distance of each pair of images in the features of a network; 0 for equal images.

    Each vector of features is divided by its length, and the squared distances of the two vectors at a position are
    averaged over the positions and added over the maps: LPIPS without learned weights.  A map adds at most 4.

    Args:
      features: Function from images in [-1, 1] to a list of maps with their channels last, (b, h2, w2, c) or (b, n, c)
        or (b, c).  Pass `jax.tree_util.Partial(apply, params)` as an argument of a compiled step, so that `params` are
        no constants of the program.
      a: Images in [-1, 1].
      b: Images to compare with, of the shape of `a`.

    Raises:
      ValueError: If the function returns no list of maps, or one without a vector for each image.

    Source: Zhang et al. 2018 (arXiv:1801.03924), eq. 1.
    """
    ours, theirs = features(a), features(b)
    shapes = [getattr(found, "shape", None) for found in ours] if isinstance(ours, list | tuple) else None
    if not shapes or not all(shape is not None and len(shape) > 1 and len(a) == shape[0] for shape in shapes):
        found = type(ours).__name__ if shapes is None else f"maps of shapes {shapes}"
        raise ArgumentError(
            f"the features of images of shape {a.shape} are {found}; expected a list of arrays with {len(a)} first and "
            "channels last"
        )
    distances = [jnp.sum((to_unit_length(x) - to_unit_length(y)) ** 2, -1) for x, y in zip(ours, theirs, strict=True)]
    return jnp.sum(jnp.stack([jnp.mean(each.reshape(len(a), -1), axis=1) for each in distances]), axis=0)
