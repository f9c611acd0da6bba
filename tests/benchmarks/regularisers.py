"""What the regularisers of the latents do to `tiny`: `python -m tests.benchmarks.regularisers`."""

import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from tyro.conf import arg

from flax_vae import AutoEncoder, from_pretrained
from flax_vae.images import open_images, psnr, to_float, to_uint8
from flax_vae.train.config import LatentConfig, recipe
from flax_vae.train.data import shipped_photographs
from flax_vae.train.evaluation import equivariance_psnr
from flax_vae.train.loop import train

HELD_OUT = "chelsea.jpg"
SIDE = 256  # of its central square
DISTURBANCE = 0.5  # standard deviation of the noise, in units of the latents'
COLUMNS = ("PSNR", "equivariance", "disturbed")


@dataclass(frozen=True)
class Flags:
    """Trains `tiny` on the shipped photographs with and without regularisers, and prints a table in decibels."""

    steps: int = 200
    """Updates of each run."""
    seeds: Annotated[tuple[int, ...], arg(metavar="S...")] = (0, 1, 2)
    """One run of each variant for each."""
    equivariance: float = 0.3
    """Probability of an update with reduced and turned latents."""
    noise: float = 0.5
    """Largest standard deviation of the noise."""
    only: Annotated[tuple[str, ...], arg(metavar="NAME...")] = ()
    """Only these variants."""


def main(args: Sequence[str] | None = None) -> int:
    """Trains, measures and prints."""
    flags = tyro.cli(Flags, prog="python -m tests.benchmarks.regularisers", args=args)
    variants = {
        "tiny": LatentConfig(),
        f"equivariance {flags.equivariance}": LatentConfig(equivariance=flags.equivariance),
        f"noise {flags.noise}": LatentConfig(noise=flags.noise),
    }
    print(f"| {flags.steps} steps | seed | {' | '.join(COLUMNS)} |")
    print(f"|---|--:|{'--:|' * len(COLUMNS)}")
    means: dict[str, np.ndarray] = {}
    for name, latents in variants.items():
        if flags.only and name.split()[0] not in flags.only:
            continue
        rows = []
        for seed in flags.seeds:
            rows.append(measure(*trained(latents, flags.steps, seed)))
            print(line(name, str(seed), rows[-1]), flush=True)
        means[name] = np.mean(rows, axis=0)
    plain = means.get("tiny")
    for name, mean in means.items():
        print(line(name, "mean", mean.tolist()))
        if plain is not None and name != "tiny":
            print(line("", "more", (mean - plain).tolist(), sign="+"))
    return 0


def line(name: str, seed: str, numbers: Sequence[float], sign: str = "") -> str:
    """A row of the table."""
    return f"| {name} | {seed} | {' | '.join(f'{number:{sign}.2f}' for number in numbers)} |"


def trained(latents: LatentConfig, steps: int, seed: int) -> tuple[AutoEncoder, Any]:
    """The exported model of a run."""
    config = replace(
        recipe("tiny"), latents=latents, steps=steps, seed=seed, log_every=steps, eval_every=steps, save_every=steps
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train(config, Path(folder) / "run")
        return from_pretrained(Path(folder) / "run" / "export")  # pyright: ignore[reportReturnType]


def measure(model: AutoEncoder, params: Any) -> list[float]:
    """The numbers of `COLUMNS`, of the square in the centre of the photograph that is held out."""
    source = open_images(str(shipped_photographs()))
    image = source[[source.name(index) for index in range(len(source))].index(HELD_OUT)]
    top, left = ((length - SIDE) // 2 for length in image.shape[:2])
    image = image[top : top + SIDE, left : left + SIDE]
    apply: Any = model.apply

    @jax.jit
    def encode(images):
        return apply({"params": params}, images, sample=False, method="encode")

    @jax.jit
    def decode(z):
        return apply({"params": params}, z, method="decode")

    z = np.asarray(encode(to_float(image[None])))
    noise = np.random.default_rng(0).standard_normal(z.shape, np.float32)
    disturbed = z + DISTURBANCE * z.std() * noise
    scores = [psnr(to_uint8(np.asarray(decode(latents)))[0], image) for latents in (z, disturbed)]
    return [scores[0], float(equivariance_psnr(model, params, image[None])[0]), scores[1]]


if __name__ == "__main__":
    sys.exit(main())
