"""From the record of a run to what runs: the model and its players, the first state, the constants of the losses."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from flax_vae import AutoEncoder, from_pretrained
from flax_vae.convert.errors import ConversionError, FileError
from flax_vae.convert.table import graft, to_flax
from flax_vae.convert.weights import load_weights
from flax_vae.discriminator import Discriminator
from flax_vae.finite import require_finite
from flax_vae.train.config import TrainConfig
from flax_vae.train.errors import RunError, TrainError
from flax_vae.train.losses import load_lpips_weights
from flax_vae.train.optim import make_discriminator_optimizer, make_optimizer, make_schedule
from flax_vae.train.state import DiscriminatorState, TrainState, create_state
from flax_vae.train.step import Components


def make_parts(config: TrainConfig) -> Components:
    """The autoencoder, its optimiser and, where the recipe has one, its discriminator."""
    dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)
    # cuDNN's kernel wants an image's positions on one device, which cut images are too large for anyway.
    attention = "tiles" if config.devices_per_image > 1 else "auto"
    parts = Components(
        model=AutoEncoder(config.model, dtype=dtype, remat=config.remat, attention=attention),
        optimizer=make_optimizer(config.optim, config.steps),
        schedule=make_schedule(config.optim, config.steps),
    )
    if not config.gan.weight:
        return parts
    return replace(
        parts,
        discriminator=Discriminator(config.gan.record, dtype=dtype),
        d_optimizer=make_discriminator_optimizer(config.gan, config.optim, config.steps),
    )


def make_constants(config: TrainConfig) -> dict[str, Any]:
    """What the losses need and nobody trains: the weights of LPIPS.

    Raises:
      RunError: If they cannot be had.
    """
    if not config.loss.lpips_weight:
        return {}
    try:
        return {"lpips": load_lpips_weights(config.loss.lpips_net, config.loss.lpips_weights)}
    except (TrainError, ConversionError, OSError, ValueError) as error:
        raise RunError(
            f"{error}; or train without LPIPS: --loss.lpips-weight 0 (now {config.loss.lpips_weight})"
        ) from error


def make_state(config: TrainConfig, parts: Components, params: dict[str, Any] | None = None) -> TrainState:
    """The state before the first update: a pure function of the record and of the weights begun with.

    Args:
      config: of the run.
      parts: as `make_parts` makes them.
      params: as `load_start` loads them, or None for fresh ones.
    """
    # One program: hundreds of small arrays, each by itself, would take seconds.
    return jax.jit(partial(_create, config, parts))(params)


def _create(config: TrainConfig, parts: Components, params: dict[str, Any] | None) -> TrainState:
    return create_state(
        parts.model,
        parts.optimizer,
        config.seed,
        params=params,
        identity=config.identity_init,
        trainable=config.trainable,
        logvar=config.loss.logvar,
        learn_logvar=config.loss.learn_logvar,
        average=config.optim.ema_decay > 0,
        discriminator=_create_discriminator(config, parts),
    )


def _create_discriminator(config: TrainConfig, parts: Components) -> DiscriminatorState | None:
    discriminator, optimizer = parts.discriminator, parts.d_optimizer
    if discriminator is None or optimizer is None:
        return None
    size = config.data.crop_size
    images = jnp.zeros((1, size, size, config.model.out_ch))
    key = jax.random.fold_in(jax.random.key(config.seed), 1)  # not that of the autoencoder
    variables = discriminator.init(key, images, train=False)
    return DiscriminatorState(variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))


def load_start(config: TrainConfig) -> dict[str, Any] | None:
    """The weights that the record names to begin with, in float32, or None.

    Raises:
      RunError: If they cannot be read, or are of another architecture.
      NotFiniteError: If a weight is NaN or infinite.
    """
    if config.start_from is None:
        return None
    try:
        if config.graft:
            weights = load_weights(Path(config.start_from), raw_weights=config.raw_weights)
            attention, width = config.model.attn_levels is None, config.model.time_emb_dim
            tensors, record = graft(
                weights.to("flux"), weights.params,
                attention=attention and weights.params.attn_levels is not None,
                time_emb_dim=width, time_embedding=config.model.time_embedding, seed=config.seed,
            )  # fmt: skip
            record = replace(record, clamp_logvar=config.model.clamp_logvar)  # the run decides; the weights fit both
            tree = to_flax(tensors, record, "flux")
        else:
            # Where nothing lies beside the weights that says what they are, the record does.
            model, tree = from_pretrained(
                Path(config.start_from), config.model, param_dtype=jnp.float32, raw_weights=config.raw_weights
            )
            record = model.params
    except (FileError, ConversionError, OSError, ValueError) as error:
        raise RunError(f"start_from={config.start_from!r} cannot be begun with: {error}") from error
    other = [
        f"{name}: {vars(record)[name]!r} there, {vars(config.model)[name]!r} here"
        for name in record.differences(config.model)
    ]
    if other:
        raise RunError(
            f"start_from={config.start_from!r} holds another architecture ({', '.join(other)}); choose the preset that "
            "it is, or graft=True where attention or time is to be added"
        )
    require_finite(tree, f"start_from={config.start_from!r}")
    return jax.tree.map(lambda array: jnp.array(array, jnp.float32), tree)
