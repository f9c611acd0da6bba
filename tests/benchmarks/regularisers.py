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
from flax_vae.train.config import LatentConfig, TrainConfig, recipe
from flax_vae.train.data import shipped_photographs
from flax_vae.train.evaluation import equivariance_psnr
from flax_vae.train.loop import train

HELD_OUT = "chelsea.jpg"
SIDE = 256  # of its central square
DISTURBANCE = 0.5  # standard deviation of the noise, in units of the latents'
COLUMNS = ("PSNR", "equivariance", "disturbed")


@dataclass(frozen=True)
class Flags:
    """Trains `tiny` on the shipped photographs, trains it further with and without regularisers, and prints a table.

    The numbers are decibels.  Published autoencoders get these regularisers in the same way, by training them further.
    """

    steps: int = 900
    """Updates of `tiny`."""
    further: int = 3600
    """Updates of each of the runs that start from it."""
    seeds: Annotated[tuple[int, ...], arg(metavar="S...")] = (0, 1, 2)
    """One run of each variant for each."""
    weight: float = 1.0
    """Weight of the loss of reduced and turned latents, which is added in every update."""
    noise: float = 0.5
    """Largest standard deviation of the noise."""
    workdir: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of the runs, which are kept; a second call trains only what is missing."""


def main(args: Sequence[str] | None = None) -> int:
    """Trains, measures and prints."""
    flags = tyro.cli(Flags, prog="python -m tests.benchmarks.regularisers", args=args)
    variants = {
        "further": LatentConfig(),
        f"further, equivariance {flags.weight}": LatentConfig(equivariance=1, equivariance_weight=flags.weight),
        f"further, noise {flags.noise}": LatentConfig(noise=flags.noise),
    }
    print(f"{flags.steps} steps of `tiny`, and {flags.further} further ones from its export\n")
    print(f"| run | seed | {' | '.join(COLUMNS)} |\n|---|--:|{'--:|' * len(COLUMNS)}")
    rows: dict[str, list[list[float]]] = {name: [] for name in ("tiny", *variants)}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in flags.seeds:
            runs = (flags.workdir or Path(scratch)) / f"seed-{seed}"
            start = trained(replace(recipe("tiny"), seed=seed, steps=flags.steps), runs / "tiny")
            exports = {"tiny": start}
            for number, (name, latents) in enumerate(variants.items()):
                config = replace(recipe("tiny", str(start)), seed=seed, steps=flags.further, latents=latents)
                exports[name] = trained(config, runs / f"further-{number}")
            for name, export in exports.items():
                rows[name].append(measure(*from_pretrained(export)))  # pyright: ignore[reportArgumentType]
                print(line(name, str(seed), rows[name][-1]), flush=True)
    means = {name: np.mean(numbers, axis=0) for name, numbers in rows.items()}
    for name, mean in means.items():
        print(line(name, "mean", mean.tolist()))
    for name in list(variants)[1:]:
        for other in ("tiny", "further"):
            print(line(name, f"more than {other}", (means[name] - means[other]).tolist(), sign="+"))
    return 0


def line(name: str, seed: str, numbers: Sequence[float], sign: str = "") -> str:
    """A row of the table."""
    return f"| {name} | {seed} | {' | '.join(f'{number:{sign}.2f}' for number in numbers)} |"


def trained(config: TrainConfig, run: Path) -> Path:
    """Returns the export of a run, which is trained unless it exists."""
    if not (run / "export").exists():
        config = replace(config, log_every=config.steps, eval_every=config.steps, save_every=config.steps)
        with contextlib.redirect_stdout(io.StringIO()):
            outcome = train(config, run)
        if outcome.stopped_by is not None:
            sys.exit(128 + outcome.stopped_by)
    return run / "export"


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
