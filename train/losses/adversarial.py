"""Adversarial losses of the discriminator and the autoencoder.

Shapes: logits `b h w 1`, one per patch, positive for patches classified as real; images `b h w c` in [-1, 1].  Every
mean is over all patches of all images, in at least float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from flax_vae.convert.errors import ArgumentError

Logits = Float[Array, "b h w 1"]
Scalar = Float[Array, ""]

LONGEST = 1e4  # upper bound on the ratio of gradient norms in the adaptive weight
SHORTEST = 1e-4  # added to the gradient norm in the denominator


def hinge_d(real: Logits, fake: Logits) -> Scalar:
    """Returns `(mean relu(1 - real) + mean relu(1 + fake)) / 2`, which is zero beyond a margin of 1.

    Args:
      real: Logits of images.
      fake: Logits of reconstructions.

    Examples:
      >>> hinge_d(jnp.ones((1, 4, 4, 1)), -jnp.ones((1, 4, 4, 1)))
      Array(0., dtype=float32)

    Source: Lim and Ye 2017 (arXiv:1705.02894); CompVis/taming-transformers `vqperceptual.py::hinge_d_loss`.
    """
    return 0.5 * (_mean(jax.nn.relu(1 - at_least_float32(real))) + _mean(jax.nn.relu(1 + at_least_float32(fake))))


def hinge_g(fake: Logits) -> Scalar:
    """Returns `-mean fake`, the autoencoder's loss with `hinge_d`.

    Args:
      fake: Logits of reconstructions.
    """
    return -_mean(fake)


def non_saturating_d(real: Logits, fake: Logits) -> Scalar:
    """Returns `(mean softplus(-real) + mean softplus(fake)) / 2`, half the binary cross-entropy in nats.

    Args:
      real: Logits of images.
      fake: Logits of reconstructions.

    Source: Goodfellow et al. 2014 (arXiv:1406.2661); CompVis/taming-transformers `vqperceptual.py::vanilla_d_loss`,
    which pairs it with `hinge_g`.
    """
    return 0.5 * (_mean(jax.nn.softplus(-at_least_float32(real))) + _mean(jax.nn.softplus(at_least_float32(fake))))


def non_saturating_g(fake: Logits) -> Scalar:
    """Returns `mean softplus(-fake)`, the autoencoder's loss with `non_saturating_d`; its gradient does not vanish.

    Args:
      fake: Logits of reconstructions.
    """
    return _mean(jax.nn.softplus(-at_least_float32(fake)))


class Adversarial(NamedTuple):
    """Pair of losses for the discriminator and the autoencoder.

    Attributes:
      discriminator: Loss of the logits of real images and of reconstructions.
      autoencoder: Loss of the logits of reconstructions.
    """

    discriminator: Callable[[Logits, Logits], Scalar]
    autoencoder: Callable[[Logits], Scalar]


LOSSES = {
    "hinge": Adversarial(hinge_d, hinge_g),
    "non_saturating": Adversarial(non_saturating_d, non_saturating_g),
}


def choose(name: str) -> Adversarial:
    """Returns the pair of losses of a name.

    Args:
      name: Name of the pair, `hinge` or `non_saturating`.

    Raises:
      ValueError: If the name is unknown.
    """
    if name not in LOSSES:
        raise ArgumentError(f"loss={name!r} must be one of {', '.join(LOSSES)}", field="loss", value=name)
    return LOSSES[name]


def adaptive_weight(
    nll_grad: PyTree[Float[Array, "..."]],
    g_grad: PyTree[Float[Array, "..."]],
    weight: float,
    axis_name: str | None = None,
) -> Scalar:
    """Returns `weight * clip(|nll_grad| / (|g_grad| + 1e-4), 0, 1e4)`, with gradients stopped.

    Scaled by it, the norm of the adversarial gradient is about `weight` times that of `nll_grad`.

    Args:
      nll_grad: Gradient of the reconstruction loss with respect to the kernel of the decoder's last convolution.
      g_grad: Gradient of the adversarial loss with respect to that kernel.
      weight: Ratio of the two norms (LDM: 0.5).
      axis_name: Name of the device axis under `pmap` or `shard_map`, over which both gradients are averaged first;
        None if they are those of the whole batch already.

    Source: Esser et al. 2021 (arXiv:2012.09841), eq. 7; CompVis/latent-diffusion `contperceptual.py`.
    """
    if axis_name is not None:
        nll_grad, g_grad = jax.lax.pmean((nll_grad, g_grad), axis_name)
    nll, g = (optax.tree.norm(jax.tree.map(at_least_float32, grad)) for grad in (nll_grad, g_grad))
    return jax.lax.stop_gradient(weight * jnp.clip(nll / (g + SHORTEST), 0, LONGEST))


def r1_penalty(logits_fn: Callable[[Float[Array, "b h w c"]], Logits], real: Float[Array, "b h w c"]) -> Scalar:
    """Returns the squared norm of the gradient of the summed logits with respect to an image, averaged over images.

    Multiply by `gamma / 2` for the regulariser of the paper.  Differentiable with respect to the variables that
    `logits_fn` closes over.  If `logits_fn` normalises with batch statistics, the gradient of an image includes its
    effect on the logits of the others.

    Args:
      logits_fn: Discriminator as a function of images alone.
      real: Real images.

    Source: Mescheder et al. 2018 (arXiv:1801.04406), eq. 9.
    """
    grads = jax.grad(lambda images: jnp.sum(at_least_float32(logits_fn(images))))(real)
    return jnp.mean(jnp.sum(jnp.square(at_least_float32(grads)), axis=tuple(range(1, real.ndim))))


def at_least_float32(x: Any) -> Array:
    """Returns an array in at least float32; a mean over many bfloat16 values would lose precision.

    Args:
      x: Array, or something that becomes one.
    """
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def _mean(x: Array) -> Scalar:
    return jnp.mean(at_least_float32(x))
