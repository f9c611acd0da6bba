"""The gradients of a batch, or of a part of one: of the autoencoder, and of the discriminator that judges it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from flax_vae import AutoEncoder
from flax_vae.discriminator import Discriminator
from flax_vae.train.conditioning import sample_times
from flax_vae.train.config import GanConfig, TrainConfig
from flax_vae.train.losses import adaptive_weight, at_least_float32, choose, kl, lpips, r1_penalty, reconstruction_loss
from flax_vae.train.state import TrainState, learned, trained_part

Scores = dict[str, Float[Array, ""]]
Average = Callable[[Any], Any]


class _Losses(NamedTuple):
    """A forward pass, and where its backward pass begins."""

    pull_back: Callable[
        [Any], tuple[dict[str, Any]]
    ]  # from gradients of reconstruction and divergence to those of weights
    to_images: Float[Array, "b h w c"]  # gradient of the reconstruction's loss
    to_kl: Float[Array, ""]
    to_logvar: Float[Array, ""]
    scores: Scores
    judged: "_Judgement | None"

    def last_kernel(self, to_images: Float[Array, "b h w c"]) -> Float[Array, "..."]:
        """Returns the gradient of the decoder's last kernel, of which alone the compiler keeps the backward pass."""
        (part,) = self.pull_back((to_images, jnp.zeros_like(self.to_kl)))
        return part["decoder"]["conv_out"]["kernel"]


class Gradients(NamedTuple):
    """What one batch says.

    Attributes:
      autoencoder: gradients of what its optimiser works on.
      discriminator: gradients of its parameters, or None.
      batch_stats: running statistics of its norms, or None.
      scores: the terms of the losses, by name.
    """

    autoencoder: dict[str, Any]
    discriminator: Any
    batch_stats: Any
    scores: Scores


def gradients(
    state: TrainState,
    batch_stats: Any,
    images: Float[Array, "b h w c"],
    index: Int[Array, " b"],
    weights: dict[str, Any],
    *,
    model: AutoEncoder,
    discriminator: Discriminator | None,
    config: TrainConfig,
    average: Average,
    weight: Float[Array, ""] | None = None,
) -> Gradients:
    """One forward and one backward pass through the autoencoder, whatever takes part in the loss.

    The backward pass is begun at the reconstruction: there the gradients of all terms are added up, after the
    discriminator's has been weighed.

    Args:
      state: before the update.
      batch_stats: running statistics of the discriminator; those in the state are of before the first part.
      images: in [-1, 1].
      index: number of each example in the whole batch.
      weights: constants of the losses: `lpips`.
      model: the autoencoder.
      discriminator: the other player, or None.
      config: of the run.
      average: over the devices, where each sees only its own examples.
      weight: Weight of the adversarial loss; None forms it from this batch, as the config says.
    """
    losses = _losses(state, batch_stats, images, index, weights, model, discriminator, config)
    to_images, scores, judged = losses.to_images, losses.scores, losses.judged
    if judged is not None:
        if weight is not None:
            formed: Any = weight
        elif config.gan.adaptive:
            nll, g = (average(losses.last_kernel(cotangent)) for cotangent in (to_images, judged.to_images))
            formed = adaptive_weight(nll, g, config.gan.weight)
        else:
            formed = jnp.float32(config.gan.weight)
        weight = jnp.where(playing(state, config.gan), formed, 0.0)
        to_images = to_images + weight * judged.to_images
        scores = scores | judged.scores | {"d_weight": weight}

    (part,) = losses.pull_back((to_images, losses.to_kl))
    autoencoder = learned(part, losses.to_logvar, config.loss.learn_logvar)
    if judged is None:
        return Gradients(autoencoder, None, None, scores)
    return Gradients(autoencoder, judged.discriminator, judged.batch_stats, scores)


def last_kernels(
    state: TrainState,
    images: Float[Array, "b h w c"],
    index: Int[Array, " b"],
    weights: dict[str, Any],
    *,
    model: AutoEncoder,
    discriminator: Discriminator,
    config: TrainConfig,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns the two gradients of the decoder's last kernel that `adaptive_weight` compares.

    They are those of the reconstruction's and of the adversarial loss, not yet averaged over devices; zeros until the
    discriminator takes part.  For a batch in several parts, whose weight needs them of all parts before the first
    backward pass; arguments as for `gradients`.
    """
    assert state.discriminator is not None

    def measure() -> tuple[Any, Any]:
        batch_stats = state.discriminator and state.discriminator.batch_stats
        losses = _losses(state, batch_stats, images, index, weights, model, discriminator, config)
        assert losses.judged is not None
        return losses.last_kernel(losses.to_images), losses.last_kernel(losses.judged.to_images)

    def wait() -> tuple[Any, Any]:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(measure))

    return jax.lax.cond(playing(state, config.gan), measure, wait)


def _losses(
    state: TrainState,
    batch_stats: Any,
    images: Float[Array, "b h w c"],
    index: Int[Array, " b"],
    weights: dict[str, Any],
    model: AutoEncoder,
    discriminator: Discriminator | None,
    config: TrainConfig,
) -> _Losses:
    """The forward pass, all terms of the losses, and their gradients by the reconstruction."""
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    time = sample_times(key, index, model.params, config.time)

    def reconstruct(part: dict[str, Any]) -> tuple[Float[Array, "b h w c"], Float[Array, ""]]:
        apply = cast(Callable[..., Any], partial(model.apply, {"params": {**state.params, **part}}))
        # Encoding
        # Drawn in bfloat16, normal numbers are only 128 different ones; summed in it, a divergence has no units.
        posterior = jax.tree.map(at_least_float32, apply(images, time, method="posterior"))
        z = posterior.mode()
        if config.loss.sample:
            z = posterior.sample(noise=example_noise(key, index, z))
        # Decoding
        reconstruction = apply(apply(z, method="scale"), time, method="decode")
        return at_least_float32(reconstruction), kl(posterior, config.loss.free_bits)

    def fidelity(reconstruction: Any, divergence: Any, logvar: Any) -> tuple[Float[Array, ""], Scores]:
        perceptual = None
        if config.loss.lpips_weight:
            perceptual = partial(lpips, weights["lpips"], net=config.loss.lpips_net, dtype=model.dtype)
        return reconstruction_loss(reconstruction, images, divergence, logvar, config.loss, perceptual)

    (reconstruction, divergence), pull_back = jax.vjp(reconstruct, trained_part(state.params, config.trainable))
    (_, scores), (to_images, to_kl, to_logvar) = jax.value_and_grad(fidelity, argnums=(0, 1, 2), has_aux=True)(
        reconstruction, divergence, state.logvar
    )
    judged = None
    if discriminator is not None and state.discriminator is not None:
        judged = _judge(discriminator, state, batch_stats, images, reconstruction, config.gan)
    return _Losses(pull_back, to_images, to_kl, to_logvar, scores, judged)


class _Judgement(NamedTuple):
    to_images: Float[Array, "b h w c"]  # gradient of the autoencoder's adversarial loss
    discriminator: Any  # gradients of the discriminator's own loss
    batch_stats: Any
    scores: Scores


def _judge(
    discriminator: Discriminator,
    state: TrainState,
    batch_stats: Any,
    images: Float[Array, "b h w c"],
    reconstruction: Float[Array, "b h w c"],
    config: GanConfig,
) -> _Judgement:
    """What the discriminator says of the reconstructions, and what it learns from both; zeros until it may begin."""
    assert state.discriminator is not None
    params = state.discriminator.params
    losses = choose(config.loss)

    def logits(params: Any, batch_stats: Any, images: Any) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": batch_stats}
        result, moved = discriminator.apply(variables, images, train=True, mutable=["batch_stats"])
        return result, moved["batch_stats"]

    def fool(reconstruction: Any) -> tuple[Float[Array, ""], Any]:
        fake, moved = logits(params, batch_stats, reconstruction)
        return losses.autoencoder(fake), moved

    def tell_apart(params: Any, batch_stats: Any) -> tuple[Float[Array, ""], Any]:
        real, batch_stats = logits(params, batch_stats, images)
        fake, batch_stats = logits(params, batch_stats, reconstruction)
        loss = losses.discriminator(real, fake)
        scores = {
            "d_loss": loss,
            "logits_real": jnp.mean(at_least_float32(real)),
            "logits_fake": jnp.mean(at_least_float32(fake)),
        }
        if config.r1:
            scores["r1"] = r1_penalty(lambda images: logits(params, batch_stats, images)[0], images)
            loss = loss + 0.5 * config.r1 * scores["r1"]
        return loss, (batch_stats, scores)

    def play() -> _Judgement:
        # The order of the source: the running statistics see the reconstructions twice.
        (g_loss, moved), to_images = jax.value_and_grad(fool, has_aux=True)(reconstruction)
        (_, (moved, scores)), grads = jax.value_and_grad(tell_apart, has_aux=True)(params, moved)
        return _Judgement(to_images, grads, moved, {"g_loss": g_loss, **scores})

    def wait() -> _Judgement:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(play))._replace(
            batch_stats=batch_stats
        )

    return jax.lax.cond(playing(state, config), play, wait)


def playing(state: TrainState, config: GanConfig) -> Bool[Array, ""]:
    """Whether the discriminator takes part in this update."""
    return state.step >= config.start


def example_noise(key: PRNGKeyArray, index: Int[Array, " b"], like: Float[Array, "b h w z"]) -> Float[Array, "b h w z"]:
    """Standard normal noise in which every example has its own key, folded from its number in the whole batch.

    Folding in the device's number would keep devices apart as well; this way the noise is also the same on any number
    of devices.

    Args:
      key: of this update.
      index: number of each example in the whole batch.
      like: gives shape and dtype.
    """
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(index)
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)
