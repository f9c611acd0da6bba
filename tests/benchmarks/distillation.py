"""Narrower decoders for the latents of a published model: `python -m tests.benchmarks.distillation --teacher FOLDER`.

The teacher is a tiny autoencoder, such as TAEF2.  For each width a decoder without pools is trained by
`flax_vae.train.loop.train` on the shipped photographs, and its export is measured on the photograph that is held out:
decibels of its reconstruction against the teacher's own and against the photograph, and the time that it takes to
decode.  Its file with diffusers' names loads strictly in `diffusers.AutoencoderTiny`'s decoder, and the images of both
are compared.  With `--workdir` a second call trains nothing, so that times can be measured when nothing else runs.
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tyro.conf import arg

from flax_vae import from_pretrained
from flax_vae.autoencoder import Model
from flax_vae.convert import TinyAutoEncoderParams, load_weights, save_weights
from flax_vae.convert.formats import read_tensors
from flax_vae.images import psnr, read_image, to_uint8
from flax_vae.inference import reconstruct
from flax_vae.train.config import LossConfig, OptimConfig, TrainConfig
from flax_vae.train.config.recipes import default
from flax_vae.train.data.photographs import SHIPPED_HELD_OUT
from flax_vae.train.data.shipped import shipped_photographs
from flax_vae.train.devices.count_flops import TracedProgram
from flax_vae.train.loop import train

SIDE = 256  # of the images that are decoded for operations and times
ROUNDS = 7


@dataclass(frozen=True)
class Flags:
    """Trains narrower decoders for the latents of a tiny autoencoder and prints a table."""

    teacher: Annotated[str, arg(metavar="FOLDER")]
    """Weights of the teacher."""
    widths: Annotated[tuple[int, ...], arg(metavar="N...")] = (16, 32, 48)
    """Widths of the students' decoders."""
    steps: int = 600
    """Updates of each student."""
    batch_size: int = 4
    """Crops per update."""
    crop_size: int = 128
    """Side of the crops; an encoder that normalises over the whole image makes other latents of small ones."""
    seed: int = 0
    """Seed of the weights and crops."""
    workdir: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of the runs, which are kept."""


def config_of(flags: Flags, teacher: TinyAutoEncoderParams, width: int) -> TrainConfig:
    """Settings of the student of a width."""
    base = default(replace(teacher, decoder_ch=width, decoder_pool=False), flags.teacher)
    return replace(
        base,
        data=replace(base.data, crop_size=flags.crop_size),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=min(50, flags.steps // 2), weight_decay=0.0, ema_decay=0.98),
        loss=LossConfig(distance="l1", kl_weight=0.0, sample=False),
        batch_size=flags.batch_size,
        steps=flags.steps,
        seed=flags.seed,
        log_every=max(1, flags.steps // 6),
        eval_every=flags.steps,
        save_every=flags.steps,
    )


def timed_decoders(models: list[tuple[Model, Any]], latents: jax.Array) -> list[float]:
    """Milliseconds of decoding, the least of some rounds in which the models take turns."""
    calls = [
        (jax.jit(lambda tree, z, model=model: model.apply({"params": tree}, z, method="decode")), tree)
        for model, tree in models
    ]
    best = [math.inf] * len(calls)
    for _ in range(ROUNDS + 1):  # the first one compiles
        for index, (call, tree) in enumerate(calls):
            begun = time.perf_counter()
            jax.block_until_ready(call(tree, latents))
            best[index] = min(best[index], 1e3 * (time.perf_counter() - begun))
    return best


def decode_operations(model: Model, params: Any, latents: jax.Array) -> int:
    """Operations of decoding; a multiply-add counts as two."""
    return TracedProgram(lambda z: model.apply({"params": params}, z, method="decode"), latents).operations()


def diffusers_decoder(folder: Path, scratch: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the decoder of diffusers with the weights of a model folder, loaded strictly."""
    import torch
    from diffusers import AutoencoderTiny

    weights = load_weights(folder)
    params = weights.params
    assert isinstance(params, TinyAutoEncoderParams)
    file = scratch / f"{params.up_ch}.safetensors"
    save_weights(file, weights, "diffusers", force=True)
    tensors = {name: torch.from_numpy(np.array(tensor)) for name, tensor in read_tensors(file).items()}
    theirs = AutoencoderTiny(
        latent_channels=params.z_channels,
        encoder_block_out_channels=(params.ch,) * params.num_levels,
        decoder_block_out_channels=(params.up_ch,) * params.num_levels,
        num_encoder_blocks=params.encoder_blocks,
        num_decoder_blocks=params.decoder_blocks[::-1],
    )
    decoder = {name.removeprefix("decoder."): t for name, t in tensors.items() if name.startswith("decoder.")}
    theirs.decoder.load_state_dict(decoder, strict=True)

    def decode(z: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return theirs.decoder(torch.from_numpy(z).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()

    return decode


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command."""
    flags = tyro.cli(Flags, prog="python -m tests.benchmarks.distillation", args=args)
    teacher, teachers = from_pretrained(flags.teacher, param_dtype=jnp.float32)
    if not isinstance(teacher.params, TinyAutoEncoderParams):
        sys.exit(f"{flags.teacher} is {teacher.params.described}; expected a tiny autoencoder")
    with tempfile.TemporaryDirectory() as scratch:
        runs = flags.workdir or Path(scratch)
        models: list[tuple[Model, Any]] = [(teacher, teachers)]
        folders = [runs / f"width-{width}" / "export" for width in flags.widths]
        for width, folder in zip(flags.widths, folders, strict=True):
            if not folder.exists():
                train(config_of(flags, teacher.params, width), folder.parent)
            models.append(from_pretrained(folder))

        photograph = read_image(shipped_photographs() / SHIPPED_HELD_OUT)
        images = [to_uint8(reconstruct(model, tree, photograph[None]).images[0]) for model, tree in models]
        side = SIDE // teacher.params.factor
        latents = jax.random.normal(jax.random.key(0), (1, side, side, teacher.params.latent_channels))
        print(
            f"{flags.steps} steps of {flags.batch_size} crops of {flags.crop_size} pixels, seed {flags.seed}; "
            f"{SHIPPED_HELD_OUT} held out; decoding one image of {SIDE} pixels\n"
        )
        print("| decoder | width | parameters | GFLOP | ms | dB against the teacher's | dB against the photograph |")
        print("|---|--:|--:|--:|--:|--:|--:|")
        times = timed_decoders(models, latents)
        for (model, tree), image, spent in zip(models, images, times, strict=True):
            assert isinstance(model.params, TinyAutoEncoderParams)
            role = "student" if model.params.up_pools(model.params.num_levels - 1) is False else "teacher"
            count = sum(leaf.size for leaf in jax.tree.leaves(tree["decoder"]))
            alike = "" if model is teacher else f"{psnr(images[0], image):.2f}"
            print(
                f"| {role} | {model.params.up_ch} | {count:,} | {decode_operations(model, tree, latents) / 1e9:.2f} "
                f"| {spent:.1f} | {alike} | {psnr(photograph, image):.2f} |"
            )
        print()
        for (model, tree), folder in zip(models[1:], folders, strict=True):
            theirs = diffusers_decoder(folder, Path(scratch))
            raw = model.apply({"params": tree}, latents, method="unscale")
            ours = np.asarray(model.apply({"params": tree}, latents, method="decode"))
            distance = np.abs(ours - theirs(np.array(raw))).max()
            same = all(map(np.array_equal, *map(jax.tree.leaves, (tree["encoder"], teachers["encoder"]))))
            print(
                f"width {model.params.up_ch}: encoder {'bit for bit the' if same else 'NOT the'} teacher's; loads "
                f"strictly in diffusers' decoder, whose image differs by at most {distance:.1e}"
            )


if __name__ == "__main__":
    main()
