"""What reading photographs costs a training step: seconds with real batches over seconds with one batch kept.

`python -m tests.benchmarks.pipeline [STEPS]` writes JPEGs of mixed sizes around 256 pixels to a temporary folder,
trains `tiny` on 64-pixel crops of them, eight at a time, and changes between the two kinds of batches after each step,
so that whatever else the machine does meets both.  It prints the medians and their ratio.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from flax_vae.train.build import make_components, make_state
from flax_vae.train.config.recipes import recipe
from flax_vae.train.config.schema import DataConfig, TrainConfig
from flax_vae.train.data.photographs import Photographs
from flax_vae.train.data.prefetch import Batches
from flax_vae.train.devices.parallel import make_parallel
from flax_vae.train.step import train_step
from tests.benchmarks.machine import describe

COUNT, SIDE, CROP, BATCH = 48, 256, 64, 8
WARM = 3  # steps of each kind before the clock counts


def write_photographs(folder: Path) -> None:
    """Smooth shapes with a photograph's share of noise, so that a decoder works as hard as on one."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        height, width = rng.integers(SIDE, 2 * SIDE, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((int(width), int(height)))
        pixels = np.asarray(coarse, np.int16) + rng.integers(-8, 9, (height, width, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03}.jpg", quality=90)


def times(config: TrainConfig, steps: int) -> Iterator[tuple[float, float]]:
    """Seconds of a step with the batch that is kept, and of the next one with one that was read."""
    parallel, components = make_parallel(config.parallel), make_components(config)
    state = parallel.place_state(make_state(config, components))
    step = parallel.compile(partial(train_step, components=components, config=config))
    photographs = Photographs(config.data)
    with Batches(photographs, 0, 0, steps + 1, config.batch_size, parallel.place_batch) as batches:
        kept = next(batches)
        for _ in range(steps):
            state, cached = _timed(step, state, lambda: kept)
            state, real = _timed(step, state, lambda: next(batches))
            yield cached, real


def _timed(step: Any, state: Any, take: Any) -> tuple[Any, float]:
    begun = time.perf_counter()
    state, scores = step(state, take(), {})
    jax.block_until_ready((state, scores))
    return state, time.perf_counter() - begun


def main(steps: int) -> None:
    """Prints the table of one measurement."""
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder))
        config = replace(
            recipe("tiny"), data=DataConfig(folder=folder, crop_size=CROP), batch_size=BATCH, steps=2 * steps
        )
        pairs = list(times(config, steps + WARM))[WARM:]
    cached, real = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    print(describe(jax.default_backend()))
    print(f"tiny, {BATCH} crops of {CROP} pixels, {steps} steps of each kind, medians:")
    print(f"  one batch kept   {1000 * cached:8.1f} ms")
    print(f"  batches read     {1000 * real:8.1f} ms, {real / cached:.3f} of the other")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 40)
