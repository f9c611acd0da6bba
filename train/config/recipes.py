"""Recipes: the default training settings of each preset, and presets that name a recipe instead of a model."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from flax_vae.convert.architecture import PRESETS, Architecture, AutoEncoderParams
from flax_vae.convert.errors import ArgumentError, suggest
from flax_vae.train.config import fine_tuning
from flax_vae.train.config.schema import DataConfig, GanConfig, LossConfig, OptimConfig, TrainConfig


def recipe(name: str, start_from: str | None = None, teacher: str | None = None) -> TrainConfig:
    """Returns the training settings of a preset.

    Args:
      name: Name of an architecture in `convert.PRESETS` or of a recipe in `RECIPES`.
      start_from: Initial weights, which some recipes need.
      teacher: Model whose latents a new decoder learns to decode, in place of initial weights.

    Examples:
      >>> config = recipe("tiny")
      >>> config.steps, config.model == PRESETS["tiny"]
      (900, True)

    Raises:
      ValueError: If the preset is unknown, if it needs weights and none are given, or if it cannot be trained on
        RGB images.
    """
    known = _find(name)
    if known.distils and start_from is None and teacher is None:
        raise ArgumentError(
            f"preset {name!r} trains a new decoder for the latents of a teacher; pass its weights with --teacher PATH, "
            "or with --start-from PATH those of a model whose decoder is trained further"
        )
    if known.fine_tunes and start_from is None:
        raise ArgumentError(f"preset {name!r} needs initial weights; pass them with --start-from PATH")
    config = known.make(PRESETS[known.architecture], start_from or (teacher if known.distils else None))
    if teacher is not None:
        return with_teacher(config, teacher, start_from)
    return config if config.start_from == start_from else replace(config, start_from=start_from)


def with_teacher(config: TrainConfig, teacher: str, start_from: str | None = None) -> TrainConfig:
    """Returns settings for a student: the teacher's encoder stays as it is, and a new decoder is trained.

    The posterior belongs to the encoder, so its divergence is left out of the loss.

    Args:
      config: Settings of a run without a teacher.
      teacher: The teacher's weights.
      start_from: Initial weights, which a student does not have.

    Raises:
      ValueError: If there are initial weights.
    """
    loss = replace(config.loss, kl_weight=0.0)
    return replace(config, teacher=teacher, start_from=start_from, trainable="decoder", loss=loss)


def architecture(name: str) -> AutoEncoderParams:
    """Returns the architecture of a preset or recipe.

    Args:
      name: Name of the preset or recipe.

    Raises:
      ValueError: If there is none of that name.
    """
    return PRESETS[_find(name).architecture]


def preset_names() -> list[str]:
    """Returns the names of all recipes and architectures."""
    return [*RECIPES, *(name for name in PRESETS if name not in RECIPES)]


def default(model: Architecture, teacher: str | None = None) -> TrainConfig:
    """Returns the defaults of `TrainConfig`: crops at the model's resolution, a long schedule, no perceptual loss.

    flax-vae-train --preset kl-f4 --data FOLDER
    hardware: accelerators
    expect:   blurred reconstructions; a starting point for your own recipe

    Args:
      model: Architecture.
      teacher: Model whose latents a new decoder learns to decode.
    """
    data = DataConfig(crop_size=model.resolution if isinstance(model, AutoEncoderParams) else DataConfig.crop_size)
    if teacher is None:
        return TrainConfig(model=model, data=data)
    loss = LossConfig(kl_weight=0.0, sample=model.has_posterior)
    return TrainConfig(model=model, data=data, loss=loss, teacher=teacher, trainable="decoder")


def _tiny(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """Trains a small model within minutes.

      flax-vae-train
      hardware: two CPU cores, or one or two devices of any kind (more need a larger --batch-size)
      memory:   0.1 GiB of a GPU
      time:     three minutes on two idle cores
      extras:   none
      expect:   27.7 to 29.2 dB PSNR and 0.84 SSIM on the held-out photograph

    The recipe shuffles channels because five photographs hold few colours, and it uses the identity initialisation
    because randomly initialised norms hide the brightness of an image from a small model.

    The held-out photograph is evaluated whole, and its group norms are computed over all of it.  Windows of 48 to 96
    pixels, reduced to 48, show the model parts of images that vary as much as whole ones do.  Windows of exactly 48
    pixels leave an error in mean colour that differs between seeds: 28.1, 28.8 and 26.2 dB with seeds 0, 1 and 2.
    """
    return TrainConfig(
        model=model,
        data=DataConfig(crop_size=48, shuffle_channels=True, min_scale=0.25),
        optim=OptimConfig(learning_rate=7e-4, warmup_steps=30, ema_decay=0.98),
        loss=LossConfig(distance="mse"),
        identity_init=start_from is None,
        start_from=start_from,
        batch_size=2,
        steps=900,
        log_every=25,
        eval_every=150,
        save_every=75,
    )


def _tiny_perceptual(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """`tiny` with the losses of the large models: LPIPS and a discriminator.

    flax-vae-train --preset tiny-perceptual
    hardware: two CPU cores, or anything else
    extras:   lpips
    expect:   LPIPS of 0.15 instead of 0.25 on the held-out photograph (AlexNet), and 2.7 dB less PSNR
    """
    return replace(
        _tiny(model, start_from),
        data=DataConfig(crop_size=32, shuffle_channels=True),
        optim=OptimConfig(learning_rate=7e-4, warmup_steps=30),
        loss=LossConfig(lpips_weight=1.0, lpips_net="alex"),  # AlexNet costs a fraction of VGG16
        gan=GanConfig(weight=0.1, start=200, features=32, layers=2),
        batch_size=8,  # the discriminator's batch norms need several examples
        steps=400,
        log_every=10,
        eval_every=100,
        save_every=50,
    )


def _kl_f8(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """The recipe of latent diffusion, which trained Stable Diffusion's autoencoder.

      flax-vae-train --preset kl-f8 --data FOLDER --parallel mesh --dtype bfloat16
      hardware: accelerators; the original ran in float32
      extras:   lpips
      expect:   as the published weights after these steps: 23.4 dB PSNR, 0.69 SSIM, 4.99 rFID on COCO 2017

    The learning rate is 4.5e-6 for every image of a batch: change both together, and `gan.learning_rate` with them.
    As in the original, `logvar` is not trained, gradients are not clipped (`clip_norm` is out of reach), and there is
    no warm-up.  Unlike the original, which has an adaptive weight for each half of a batch, the batch has one.

    Source: CompVis/latent-diffusion `autoencoder_kl_32x32x4.yaml`, `contperceptual.py`, `AutoencoderKL`.
    """
    batch_size = 24  # 2 x 12
    learning_rate = 4.5e-6 * batch_size
    return TrainConfig(
        model=model,
        data=DataConfig(crop_size=256),
        optim=OptimConfig(
            learning_rate=learning_rate, schedule="constant", warmup_steps=0, b1=0.5, b2=0.9, weight_decay=0.0,
            clip_norm=1e9, accumulate=2,
        ),
        loss=LossConfig(distance="l1", reduction="sum", kl_weight=1e-6, lpips_weight=1.0),
        gan=GanConfig(weight=0.5, start=50_001, learning_rate=learning_rate),
        start_from=start_from,
        batch_size=batch_size,
        steps=246_803,
    )  # fmt: skip


def _flux2_small_decoder(model: AutoEncoderParams, weights: str | None) -> TrainConfig:
    """Trains a decoder of three quarters of the widths for the latents of FLUX.2's autoencoder.

      flax-vae-train --preset flux2-small-decoder --teacher MODEL --data FOLDER
      hardware: accelerators; 16 crops of 256 pixels in bfloat16
      memory:   0.7 GiB of weights and their states, and 6.1 GiB of activations beside those of LPIPS
      extras:   lpips
      expect:   a decoder of 57 % of the operations and 56 % of the weights; its export loads as FLUX.2-small-decoder
                does, in diffusers and in the layout `flux2`

    The encoder, the quant convolutions of the encoder and the latents' statistics are the teacher's, bit for bit, so a
    diffusion model needs no change.  Samples of the posterior are decoded, because a diffusion model's latents are not
    exact either.  How black-forest-labs trained theirs is not known; this is the usual recipe of a decoder.
    """
    return TrainConfig(
        model=model,
        data=DataConfig(crop_size=256),
        optim=OptimConfig(learning_rate=1e-4, weight_decay=0.0, ema_decay=0.999),
        loss=LossConfig(distance="l1", kl_weight=0.0, lpips_weight=1.0),
        gan=GanConfig(weight=0.5, start=50_001, learning_rate=1e-4),
        start_from=weights,
        trainable="decoder",
        batch_size=16,
        steps=200_000,
        dtype="bfloat16",
    )


class _Recipe(NamedTuple):
    """How the settings of a preset are made.

    Attributes:
      architecture: Name in `convert.PRESETS`.
      make: Function of the architecture and the initial weights, whose docstring describes the recipe.
      fine_tunes: Whether it needs initial weights.
      distils: Whether it needs a teacher, or initial weights in its place.
    """

    architecture: str
    make: Callable[[AutoEncoderParams, str | None], TrainConfig]
    fine_tunes: bool = False
    distils: bool = False


RECIPES = {
    "tiny": _Recipe("tiny", _tiny),
    "tiny-perceptual": _Recipe("tiny", _tiny_perceptual),
    "kl-f8": _Recipe("kl-f8", _kl_f8),
    "flux1-finetune": _Recipe("flux1", fine_tuning.flux1, fine_tunes=True),
    "flux1-finetune-16gb": _Recipe("flux1", fine_tuning.flux1_16gb, fine_tunes=True),
    "flux1-finetune-24gb": _Recipe("flux1", fine_tuning.flux1_24gb, fine_tunes=True),
    "flux1-finetune-80gb": _Recipe("flux1", fine_tuning.flux1_80gb, fine_tunes=True),
    "flux1-finetune-v5e": _Recipe("flux1", fine_tuning.flux1_v5e, fine_tunes=True),
    "sd-decoder-finetune": _Recipe("sd1", fine_tuning.sd_decoder, fine_tunes=True),
    "sd-decoder-finetune-16gb": _Recipe("sd1", fine_tuning.sd_decoder_16gb, fine_tunes=True),
    "sd-decoder-finetune-24gb": _Recipe("sd1", fine_tuning.sd_decoder_24gb, fine_tunes=True),
    "sd-decoder-finetune-80gb": _Recipe("sd1", fine_tuning.sd_decoder_80gb, fine_tunes=True),
    "sd-decoder-finetune-v5e": _Recipe("sd1", fine_tuning.sd_decoder_v5e, fine_tunes=True),
    "flux2-small-decoder": _Recipe("flux2-small-decoder", _flux2_small_decoder, distils=True),
}


def fine_tuning_recipe(model: AutoEncoderParams, start_from: str) -> TrainConfig:
    """Returns settings that continue from weights of an architecture for which no preset was named.

    Returns the recipe for published weights of this architecture if there is one, whatever scale and shift of the
    latents are; otherwise small constant steps on all weights, with a moving average, and without other networks.

    Args:
      model: Architecture of the weights.
      start_from: Initial weights.
    """
    for known in RECIPES.values():
        like = PRESETS[known.architecture]
        if known.fine_tunes and replace(like, **{name: getattr(model, name) for name in _LATENTS}) == model:
            return known.make(model, start_from)
    return fine_tuning.others(model, start_from)


# Fields that neither the weights nor their training depend on.
_LATENTS = ("scale_factor", "shift_factor", "resolution")
_ABOUT = ("hardware", "memory", "time", "extras", "expect")


def about_recipes() -> list[dict[str, str]]:
    """Returns name, hardware, memory, time, extras and expectation of each recipe, as its docstring gives them."""
    return [{"recipe": name, **_about(known.make.__doc__ or "")} for name, known in RECIPES.items()]


def _about(text: str) -> dict[str, str]:
    lines = re.findall(rf"^ +({'|'.join(_ABOUT)}): +(.*(?:\n {{14}}.*)*)", text, re.MULTILINE)
    found = {name: " ".join(value.split()) for name, value in lines}
    return {name: found.get(name, "") for name in _ABOUT}


def _find(name: str) -> _Recipe:
    if name in RECIPES:
        return RECIPES[name]
    if name in PRESETS:
        return _Recipe(name, lambda model, _: default(model))
    hint = suggest(name, preset_names(), listed=True)
    raise ArgumentError(f"unknown preset {name!r}; {hint}", field="preset", value=name)
