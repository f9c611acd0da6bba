"""What a discriminator and the autoencoder that it judges minimise.

Shapes: logits `b h w 1`, one for every patch, positive where the discriminator takes it for real; images `b h w c` in
[-1, 1].  Every mean is over all patches of all images, in float32 at least.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

Logits = Float[Array, "b h w 1"]
Scalar = Float[Array, ""]

LONGEST = 1e4  # the adaptive weight is at most this many times the plain one
SHORTEST = 1e-4  # added to the length of the gradient that it divides by


def hinge_d(real: Logits, fake: Logits) -> Scalar:
    """`(mean relu(1 - real) + mean relu(1 + fake)) / 2`: content once the two are a margin of 1 from zero.

    Source: Lim and Ye 2017 (arXiv:1705.02894); CompVis/taming-transformers `vqperceptual.py::hinge_d_loss`.
    """
    return 0.5 * (_mean(jax.nn.relu(1 - wide(real))) + _mean(jax.nn.relu(1 + wide(fake))))


def hinge_g(fake: Logits) -> Scalar:
    """`-mean fake`, what the autoencoder minimises beside `hinge_d`."""
    return -_mean(fake)


def non_saturating_d(real: Logits, fake: Logits) -> Scalar:
    """`(mean softplus(-real) + mean softplus(fake)) / 2`: half the cross-entropy of telling the two apart, in nats.

    Source: Goodfellow et al. 2014 (arXiv:1406.2661); CompVis/taming-transformers `vqperceptual.py::vanilla_d_loss`,
    which pairs it with `hinge_g`.
    """
    return 0.5 * (_mean(jax.nn.softplus(-wide(real))) + _mean(jax.nn.softplus(wide(fake))))


def non_saturating_g(fake: Logits) -> Scalar:
    """`mean softplus(-fake)`, what the autoencoder minimises beside `non_saturating_d`: its gradient never vanishes."""
    return _mean(jax.nn.softplus(-wide(fake)))


class Adversarial(NamedTuple):
    """The losses of the two sides.

    Attributes:
      discriminator: of the logits of real images and of reconstructions.
      autoencoder: of the logits of reconstructions.
    """

    discriminator: Callable[[Logits, Logits], Scalar]
    autoencoder: Callable[[Logits], Scalar]


LOSSES = {
    "hinge": Adversarial(hinge_d, hinge_g),
    "non_saturating": Adversarial(non_saturating_d, non_saturating_g),
}


def choose(name: str) -> Adversarial:
    """Returns the pair of losses of that name.

    Raises:
      ValueError: if there is none.
    """
    if name not in LOSSES:
        raise ValueError(f"loss={name!r} must be one of {', '.join(LOSSES)}")
    return LOSSES[name]


def adaptive_weight(
    nll_grad: PyTree[Float[Array, "..."]], g_grad: PyTree[Float[Array, "..."]], weight: float
) -> Scalar:
    """`weight * clip(|nll_grad| / (|g_grad| + 1e-4), 0, 1e4)`, through which no gradient passes.

    Multiplied by it, the adversarial gradient is about `weight` times as long as the other.

    Args:
      nll_grad: of the reconstruction's loss, by the kernel of the decoder's last convolution; averaged over the whole
        batch, on every device.
      g_grad: of the adversarial loss, likewise.
      weight: that factor (LDM: 0.5).

    Source: Esser et al. 2021 (arXiv:2012.09841), eq. 7; CompVis/latent-diffusion `contperceptual.py`.
    """
    nll, g = (optax.tree.norm(jax.tree.map(wide, grad)) for grad in (nll_grad, g_grad))
    return jax.lax.stop_gradient(weight * jnp.clip(nll / (g + SHORTEST), 0, LONGEST))


def r1_penalty(logits_fn: Callable[[Float[Array, "b h w c"]], Logits], real: Float[Array, "b h w c"]) -> Scalar:
    """The squared length of the gradient of the summed logits by a real image, mean over the images.

    The caller multiplies by `gamma / 2` to have the paper's regulariser.  It is differentiable by whatever
    `logits_fn` closes over.  Where that normalises with the statistics of the batch, an image's gradient includes how
    it moves the logits of the others.

    Args:
      logits_fn: the discriminator, of images alone.
      real: the images.

    Source: Mescheder et al. 2018 (arXiv:1801.04406), eq. 9.
    """
    grads = jax.grad(lambda images: jnp.sum(wide(logits_fn(images))))(real)
    return jnp.mean(jnp.sum(jnp.square(wide(grads)), axis=tuple(range(1, real.ndim))))


def wide(x: Any) -> Array:
    """In float32 at least: the mean of many bfloat16 numbers would be rounded away."""
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def _mean(x: Array) -> Scalar:
    return jnp.mean(wide(x))
