"""Losses and gradients of the autoencoder and the discriminator, for a batch or a part of one."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from flax_vae.autoencoder import Model
from flax_vae.discriminator import Discriminator
from flax_vae.train.conditioning import sample_times
from flax_vae.train.config import GanConfig, TrainConfig
from flax_vae.train.losses import (
    QUARTERS,
    adaptive_weight,
    add_noise,
    at_least_float32,
    choose,
    kl,
    lpips,
    r1_penalty,
    reconstruction_loss,
    transform_pair,
    variance_expansion,
)
from flax_vae.train.state import TrainState, trained_part, with_logvar, with_part

Scores = dict[str, Float[Array, ""]]
_LAST_KERNEL = "decoder/conv_out/kernel"
# Folded into the key of an update, as the indices of examples are, and 2**32 - 1 for their times.
_TURNS, _NOISE, _STRENGTH = 2**32 - 2, 2**32 - 3, 2**32 - 4
Average = Callable[[Any], Any]
_Images = tuple[Float[Array, "b h w c"], ...]


class _Losses(NamedTuple):
    """Results of the forward pass, and the gradients from which the backward pass starts.

    Attributes:
      pull_back: Maps gradients with respect to reconstructions and penalties to those with respect to the weights.
      to_images: Gradients of the reconstruction loss with respect to the reconstructions; the second, if there is one,
        is that of the reduced latents.
      to_penalties: Gradients with respect to the penalties of the posterior.
      to_logvar: Gradient with respect to the reconstruction's log-variance.
      scores: Terms of the loss, by name.
      adversarial: Losses and gradients of the discriminator, or None.
    """

    pull_back: Callable[[Any], tuple[dict[str, Any]]]
    to_images: tuple[Float[Array, "b h w c"], ...]
    to_penalties: Scores
    to_logvar: Float[Array, ""]
    scores: Scores
    adversarial: "_DiscriminatorPass | None"

    def last_kernels(self) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Returns the gradients of the decoder's last kernel: of the reconstruction loss and of the adversarial loss.

        The compiler drops the rest of the backward passes.
        """
        assert self.adversarial is not None
        nothing = jax.tree.map(jnp.zeros_like, (self.to_images, self.to_penalties))
        found = []
        for to_images in (self.to_images, (self.adversarial.to_images, *nothing[0][1:])):
            (part,) = self.pull_back((to_images, nothing[1]))
            found.append(part["decoder"]["conv_out"]["kernel"])
        return found[0], found[1]


class Gradients(NamedTuple):
    """Gradients and scores of one batch.

    Attributes:
      autoencoder: Gradients of the trained parameters, and of the log-variance if it is trained.
      discriminator: Gradients of the discriminator's parameters, or None.
      batch_stats: Running statistics of the discriminator's norms, or None.
      scores: Terms of the losses, by name.
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
    model: Model,
    discriminator: Discriminator | None,
    config: TrainConfig,
    average: Average,
    weight: Float[Array, ""] | None = None,
    size: int | None = None,
) -> Gradients:
    """Computes all gradients with one forward and one backward pass through the autoencoder.

    The gradients of all terms are added at the reconstruction, after the adversarial one has been weighted.  The
    backward pass starts there.

    Args:
      state: State before the update.
      batch_stats: Running statistics of the discriminator; those in the state are from before the first part.
      images: Images in [-1, 1].
      index: Index of each example in the whole batch.
      weights: Constants of the losses: `lpips` and `features`.
      model: Autoencoder.
      discriminator: Discriminator, or None.
      config: Settings of the run.
      average: Function that averages a tree over devices, if each device has only its own examples.
      weight: Weight of the adversarial loss; None computes it from this batch, as set by the config.
      size: Side that the raw latents are reduced to, before they are turned by random quarters and compared with images
        that are changed alike; None leaves both as they are.  With `latents.equivariance_weight` the whole latents are
        decoded too, and the discriminator sees only those images.
    """
    losses = _losses(state, batch_stats, images, index, weights, model, discriminator, config, size)
    to_images, scores, adversarial = losses.to_images, losses.scores, losses.adversarial
    if adversarial is not None:
        if weight is not None:
            active_weight: Any = weight
        elif config.gan.adaptive:
            nll, g = (average(kernel) for kernel in losses.last_kernels())
            active_weight = adaptive_weight(nll, g, config.gan.weight)
        else:
            active_weight = jnp.float32(config.gan.weight)
        weight = jnp.where(discriminator_active(state, config.gan), active_weight, 0.0)
        to_images = (to_images[0] + weight * adversarial.to_images, *to_images[1:])
        scores = scores | adversarial.scores | {"d_weight": weight}

    (part,) = losses.pull_back((to_images, losses.to_penalties))
    autoencoder = with_logvar(trained_part(part, config.trained), losses.to_logvar, config.loss.learn_logvar)
    if adversarial is None:
        return Gradients(autoencoder, None, None, scores)
    return Gradients(autoencoder, adversarial.discriminator, adversarial.batch_stats, scores)


def last_kernels(
    state: TrainState,
    images: Float[Array, "b h w c"],
    index: Int[Array, " b"],
    weights: dict[str, Any],
    *,
    model: Model,
    discriminator: Discriminator,
    config: TrainConfig,
    size: int | None = None,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns the gradients of the decoder's last kernel that `adaptive_weight` compares.

    A batch in several parts needs them for all parts before the first backward pass.  For the arguments see
    `gradients`.

    Returns:
      Gradients of the reconstruction loss and of the adversarial loss, not averaged over devices; zeros while the
      discriminator is inactive.
    """
    assert state.discriminator is not None

    def measure() -> tuple[Any, Any]:
        batch_stats = state.discriminator and state.discriminator.batch_stats
        losses = _losses(state, batch_stats, images, index, weights, model, discriminator, config, size)
        return losses.last_kernels()

    def inactive() -> tuple[Any, Any]:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(measure))

    return jax.lax.cond(discriminator_active(state, config.gan), measure, inactive)


def kept_for_backward(
    state: TrainState,
    images: Float[Array, "b h w c"],
    weights: dict[str, Any],
    *,
    model: Model,
    discriminator: Discriminator | None,
    config: TrainConfig,
) -> list[Array]:
    """Returns what the forward pass of the autoencoder keeps for the backward pass, beside its own inputs.

    With `jax.eval_shape` it tells the memory of the activations without compiling.  For the arguments see `gradients`.
    """
    batch_stats, index = state.discriminator and state.discriminator.batch_stats, jnp.arange(images.shape[0])
    losses = _losses(state, batch_stats, images, index, weights, model, discriminator, config, config.largest_reduced)
    inputs = {id(leaf) for leaf in jax.tree.leaves((state, images, weights))}
    kept = {id(leaf): leaf for leaf in jax.tree.leaves(losses.pull_back)}  # some are kept for several operations
    return [leaf for number, leaf in kept.items() if number not in inputs]


def _losses(
    state: TrainState,
    batch_stats: Any,
    images: Float[Array, "b h w c"],
    index: Int[Array, " b"],
    weights: dict[str, Any],
    model: Model,
    discriminator: Discriminator | None,
    config: TrainConfig,
    size: int | None,
) -> _Losses:
    """Runs the forward pass; returns all terms of the losses and their gradients with respect to the reconstruction."""
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    time = sample_times(key, index, model.params, config.time)

    turns = None if size is None else jax.random.randint(jax.random.fold_in(key, _TURNS), (), 0, QUARTERS)

    def reconstruct(part: dict[str, Any]) -> tuple[tuple[_Images, Scores], _Images]:
        apply = cast(Callable[..., Any], partial(model.apply, {"params": with_part(state.params, part)}))
        # Encoding
        # In bfloat16, normal samples take only 128 different values, and a sum loses its last digits.
        if model.params.has_posterior:
            posterior = jax.tree.map(at_least_float32, apply(images, time, method="posterior"))
            z, penalties = posterior.mode(), {"kl": kl(posterior, config.loss.free_bits)}
            if config.latents.variance_weight:
                penalties["variance_expansion"] = variance_expansion(posterior.logvar)
            if config.loss.sample:
                z = posterior.sample(noise=example_noise(key, index, z))
        else:
            z, penalties = at_least_float32(apply(images, time, method="moments")), {"kl": jnp.float32(0)}
        # Decoding
        pairs = [(images, z)]
        if size is not None and turns is not None:
            reduced = transform_pair(images, z, (size, size), turns)
            pairs = [reduced] if config.latents.equivariance_weight is None else [*pairs, reduced]
        targets, reconstructions = [], []
        for target, z in pairs:
            z = apply(z, method="scale")
            if config.latents.noise:
                z = _disturb(key, index, z, config.latents.noise)
            targets.append(target)
            reconstructions.append(at_least_float32(apply(z, time, method="decode")))
        return (tuple(reconstructions), penalties), tuple(targets)

    def fidelity(reconstructions: _Images, penalties: Any, logvar: Any) -> tuple[Float[Array, ""], Scores]:
        perceptual = None
        if config.loss.lpips_weight:
            perceptual = partial(lpips, weights["lpips"], net=config.loss.lpips_net, dtype=model.dtype)
        loss_of = partial(
            reconstruction_loss,
            distance=config.loss.distance, kl_weight=config.loss.kl_weight, reduction=config.loss.reduction,
            perceptual=perceptual, lpips_weight=config.loss.lpips_weight, ssim_weight=config.loss.ssim_weight,
            features=weights.get("features"), features_weight=config.loss.features_weight,
            logvar=logvar if config.loss.learn_logvar or config.loss.logvar else None, values=images[0].size,
        )  # fmt: skip
        loss, scores = loss_of(reconstructions[0], targets[0], penalties["kl"])
        if config.latents.equivariance_weight is not None and size is not None:
            scores["equivariance"], _ = loss_of(reconstructions[1], targets[1], jnp.float32(0))
            loss = loss + config.latents.equivariance_weight * scores["equivariance"]
        if config.latents.variance_weight:
            values = images[0].size if config.loss.reduction == "sum" else 1
            scores["variance_expansion"] = penalties["variance_expansion"]
            loss = loss + config.latents.variance_weight * values * scores["variance_expansion"]
        return loss, scores | {"loss": loss}

    # The adaptive weight compares gradients of the last kernel, whether it is trained or not.
    differentiated = config.trained | ({_LAST_KERNEL} if discriminator is not None and config.gan.adaptive else set())
    (reconstructions, penalties), pull_back, targets = jax.vjp(
        reconstruct, trained_part(state.params, differentiated), has_aux=True
    )
    (_, scores), (to_images, to_penalties, to_logvar) = jax.value_and_grad(fidelity, argnums=(0, 1, 2), has_aux=True)(
        reconstructions, penalties, state.logvar
    )
    adversarial = None
    if discriminator is not None and state.discriminator is not None:
        adversarial = _discriminator_pass(discriminator, state, batch_stats, targets[0], reconstructions[0], config.gan)
    return _Losses(pull_back, to_images, to_penalties, to_logvar, scores, adversarial)


class _DiscriminatorPass(NamedTuple):
    """Results of the discriminator for a batch.

    Attributes:
      to_images: Gradient of the autoencoder's adversarial loss with respect to the reconstruction.
      discriminator: Gradients of the discriminator's loss with respect to its parameters.
      batch_stats: Running statistics after the batch.
      scores: Losses and mean logits, by name.
    """

    to_images: Float[Array, "b h w c"]
    discriminator: Any
    batch_stats: Any
    scores: Scores


def _discriminator_pass(
    discriminator: Discriminator,
    state: TrainState,
    batch_stats: Any,
    images: Float[Array, "b h w c"],
    reconstruction: Float[Array, "b h w c"],
    config: GanConfig,
) -> _DiscriminatorPass:
    """Computes the adversarial losses and their gradients; returns zeros while the discriminator is inactive."""
    assert state.discriminator is not None
    params = state.discriminator.params
    losses = choose(config.loss)

    def logits(params: Any, batch_stats: Any, images: Any) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": batch_stats}
        result, moved = discriminator.apply(variables, images, train=True, mutable=["batch_stats"])
        return result, moved["batch_stats"]

    def generator_loss(reconstruction: Any) -> tuple[Float[Array, ""], Any]:
        fake, moved = logits(params, batch_stats, reconstruction)
        return losses.autoencoder(fake), moved

    def discriminator_loss(params: Any, batch_stats: Any) -> tuple[Float[Array, ""], Any]:
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

    def active() -> _DiscriminatorPass:
        # As in LDM, the reconstructions update the running statistics twice: in the autoencoder's loss and here.
        (g_loss, moved), to_images = jax.value_and_grad(generator_loss, has_aux=True)(reconstruction)
        (_, (moved, scores)), grads = jax.value_and_grad(discriminator_loss, has_aux=True)(params, moved)
        return _DiscriminatorPass(to_images, grads, moved, {"g_loss": g_loss, **scores})

    def inactive() -> _DiscriminatorPass:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(active))._replace(
            batch_stats=batch_stats
        )

    return jax.lax.cond(discriminator_active(state, config), active, inactive)


def discriminator_active(state: TrainState, config: GanConfig) -> Bool[Array, ""]:
    """Returns whether the discriminator takes part in this update."""
    return state.step >= config.start


def example_noise(key: PRNGKeyArray, index: Int[Array, " b"], like: Float[Array, "b h w z"]) -> Float[Array, "b h w z"]:
    """Returns standard normal noise, with a key for each example that is folded from its index in the whole batch.

    The noise therefore does not depend on the number of devices.

    Args:
      key: Key of this update.
      index: Index of each example in the whole batch.
      like: Array of the shape and dtype to return.
    """
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(index)
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)


def _disturb(
    key: PRNGKeyArray, index: Int[Array, " b"], z: Float[Array, "b h w z"], largest: float
) -> Float[Array, "b h w z"]:
    """Returns latents with noise, whose deviation is drawn for each example; see `example_noise`."""
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, _STRENGTH)))(index)
    noise = example_noise(jax.random.fold_in(key, _NOISE), index, z)
    return add_noise(z, noise, jax.vmap(jax.random.uniform)(keys), largest)
