"""Recipes that continue from published weights, and their variants for common hardware.

A variant has the loss, the batch and the learning rate of its recipe.  It computes in bfloat16, in as many parts of the
batch as the memory needs.  Memory is that of `flax-vae-train plan --topology gpu-16gb` and so on, of the three quarters
of a GPU's memory that JAX takes; the time is its lower bound, which real runs take a multiple of.
"""

from dataclasses import replace
from typing import Literal

from flax_vae.convert.architecture import AutoEncoderParams
from flax_vae.train.config.schema import DataConfig, GanConfig, LossConfig, OptimConfig, TrainConfig


def flux1(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """Fine-tunes FLUX.1's autoencoder on your own images.

      flax-vae-train --preset flux1-finetune --start-from FOLDER_OR_FILE --data FOLDER
      hardware: accelerators
      extras:   lpips
      expect:   scores of the published model at the beginning (ImageNet at 256 pixels: 32.87 dB PSNR, 0.924 SSIM)

    Small steps and a moving average of the weights keep latents close to those that diffusion models were trained on;
    with `--trainable decoder` they stay exactly the same.  The discriminator starts untrained, and after the other
    losses have converged.  How the published weights were trained is not known; this is the usual recipe, cautiously.
    """
    return TrainConfig(
        model=model,
        data=DataConfig(crop_size=256),
        optim=OptimConfig(learning_rate=1e-5, schedule="constant", weight_decay=0.0, ema_decay=0.999),
        loss=LossConfig(distance="l1", kl_weight=1e-6, lpips_weight=1.0),
        gan=GanConfig(weight=0.5, start=5_001, learning_rate=1e-5),
        start_from=start_from,
        batch_size=32,
        steps=50_000,
        dtype="bfloat16",
        remat="blocks",
    )


def sd_decoder(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """Fine-tunes the decoder as sd-vae-ft-mse was from Stable Diffusion: smoother reconstructions, same latents.

      flax-vae-train --preset sd-decoder-finetune --start-from FILE --data FOLDER
      hardware: accelerators; the original had 16 A100
      memory:   366 GiB of all devices together, in float32
      extras:   lpips
      expect:   as the published weights: 24.5 dB PSNR, 0.71 SSIM, 4.70 rFID on COCO 2017, from 23.4, 0.69 and 4.99

    The model card gives the loss, the batch, the steps and that an average of the weights was kept, but no learning
    rate: this one is cautious.  A frozen encoder needs no KL divergence.

    Source: the model card of stabilityai/sd-vae-ft-mse.
    """
    return TrainConfig(
        model=model,
        data=DataConfig(crop_size=256),
        optim=OptimConfig(learning_rate=1e-5, schedule="constant", weight_decay=0.0, ema_decay=0.9999),
        loss=LossConfig(distance="mse", kl_weight=0.0, lpips_weight=0.1),
        start_from=start_from,
        trainable="decoder",
        batch_size=192,
        steps=280_000,
    )


def others(model: AutoEncoderParams, start_from: str) -> TrainConfig:
    """Returns settings for weights of any other architecture: small constant steps, and a moving average."""
    return TrainConfig(
        model=model,
        data=DataConfig(crop_size=model.resolution),
        optim=OptimConfig(learning_rate=1e-5, schedule="constant", weight_decay=0.0, ema_decay=0.999),
        start_from=start_from,
        steps=20_000,
    )


def _for_hardware(
    config: TrainConfig, parts: int, remat: Literal["none", "attention", "blocks"], *, photographs: bool
) -> TrainConfig:
    """Returns a variant of a recipe.

    Args:
      config: Recipe.
      parts: Parts of the batch that are computed one after another.
      remat: Activations that are computed again.
      photographs: Whether it is for tens to thousands of photographs instead of millions.
    """
    config = replace(config, dtype="bfloat16", remat=remat, optim=replace(config.optim, accumulate=parts))
    if not photographs:
        return config
    # A thousand updates see each of fifty photographs in hundreds of crops or more; the warm-up and the
    # discriminator's start are in proportion.
    optim, gan = replace(config.optim, warmup_steps=100), replace(config.gan, start=301)
    return replace(config, steps=1_000, optim=optim, gan=gan, eval_every=100, save_every=100, log_every=10)


def flux1_16gb(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """`flux1-finetune` on one GPU of 16 GB, for tens to thousands of photographs.

      flax-vae-train --preset flux1-finetune-16gb --start-from FOLDER_OR_FILE --data FOLDER
      hardware: one GPU of 16 GB with bfloat16 (RTX 30 and later)
      memory:   3.4 of 12 GiB that JAX takes
      time:     at least 1.6 s a step
      extras:   lpips, cuda12
      expect:   scores of the published model, and more detail in images like yours

    For millions of images: --steps 50000 --gan.start 5001.
    """
    return _for_hardware(flux1(model, start_from), 8, "blocks", photographs=True)


def flux1_24gb(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """`flux1-finetune` on one GPU of 24 GB, for tens to thousands of photographs.

      flax-vae-train --preset flux1-finetune-24gb --start-from FOLDER_OR_FILE --data FOLDER
      hardware: one GPU of 24 GB with bfloat16 (RTX 3090, 4090, L4, A10)
      memory:   4.5 of 18 GiB that JAX takes
      time:     at least 1.7 s a step
      extras:   lpips, cuda12
      expect:   scores of the published model, and more detail in images like yours

    For millions of images: --steps 50000 --gan.start 5001.
    """
    return _for_hardware(flux1(model, start_from), 4, "blocks", photographs=True)


def flux1_80gb(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """`flux1-finetune` on one GPU of 80 GB, for millions of images.

      flax-vae-train --preset flux1-finetune-80gb --start-from FOLDER_OR_FILE --data FOLDER
      hardware: one A100 or H100 of 80 GB
      memory:   15.3 of 60 GiB that JAX takes
      time:     at least 0.36 s a step
      extras:   lpips, cuda12
      expect:   scores of the published model, and more detail in images like yours

    For tens of photographs: --steps 1000 --gan.start 301 --warmup-steps 100.
    """
    return _for_hardware(flux1(model, start_from), 2, "none", photographs=False)


def flux1_v5e(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """`flux1-finetune` on a host of four TPU v5e, for millions of images.

      flax-vae-train --preset flux1-finetune-v5e --start-from FOLDER_OR_FILE --data FOLDER
      hardware: one host of four TPU v5e (v5litepod-4)
      memory:   4.6 of 16 GiB on each chip
      time:     at least 0.12 s a step
      extras:   lpips, tpu
      expect:   scores of the published model, and more detail in images like yours

    For tens of photographs: --steps 1000 --gan.start 301 --warmup-steps 100.
    """
    return _for_hardware(flux1(model, start_from), 1, "blocks", photographs=False)


def sd_decoder_16gb(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """`sd-decoder-finetune` on one GPU of 16 GB, for tens to thousands of photographs.

      flax-vae-train --preset sd-decoder-finetune-16gb --start-from FILE --data FOLDER
      hardware: one GPU of 16 GB with bfloat16 (RTX 30 and later)
      memory:   5.3 of 12 GiB that JAX takes
      time:     at least 5.5 s a step
      extras:   lpips, cuda12
      expect:   smoother reconstructions of images like yours, the same latents

    For millions of images: --steps 280000, or a batch of 24 in 2 parts, which takes an eighth of the time.
    """
    return _for_hardware(sd_decoder(model, start_from), 12, "blocks", photographs=True)


def sd_decoder_24gb(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """`sd-decoder-finetune` on one GPU of 24 GB, for tens to thousands of photographs.

      flax-vae-train --preset sd-decoder-finetune-24gb --start-from FILE --data FOLDER
      hardware: one GPU of 24 GB with bfloat16 (RTX 3090, 4090, L4, A10)
      memory:   7.0 of 18 GiB that JAX takes
      time:     at least 6 s a step
      extras:   lpips, cuda12
      expect:   smoother reconstructions of images like yours, the same latents

    For millions of images: --steps 280000, or a batch of 24 in one part, which takes an eighth of the time.
    """
    return _for_hardware(sd_decoder(model, start_from), 8, "blocks", photographs=True)


def sd_decoder_80gb(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """`sd-decoder-finetune` on one GPU of 80 GB, for millions of images.

      flax-vae-train --preset sd-decoder-finetune-80gb --start-from FILE --data FOLDER
      hardware: one A100 or H100 of 80 GB
      memory:   15.0 of 60 GiB that JAX takes
      time:     at least 1.2 s a step
      extras:   lpips, cuda12
      expect:   as the published weights: 24.5 dB PSNR, 0.71 SSIM, 4.70 rFID on COCO 2017

    For tens of photographs: --steps 1000 --warmup-steps 100.
    """
    return _for_hardware(sd_decoder(model, start_from), 8, "none", photographs=False)


def sd_decoder_v5e(model: AutoEncoderParams, start_from: str | None) -> TrainConfig:
    """`sd-decoder-finetune` on a host of four TPU v5e, for millions of images.

      flax-vae-train --preset sd-decoder-finetune-v5e --start-from FILE --data FOLDER
      hardware: one host of four TPU v5e (v5litepod-4)
      memory:   5.6 of 16 GiB on each chip
      time:     at least 0.54 s a step
      extras:   lpips, tpu
      expect:   as the published weights: 24.5 dB PSNR, 0.71 SSIM, 4.70 rFID on COCO 2017

    For tens of photographs: --steps 1000 --warmup-steps 100.
    """
    return _for_hardware(sd_decoder(model, start_from), 4, "blocks", photographs=False)
