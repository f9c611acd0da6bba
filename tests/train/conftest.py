"""A model and images so small that a whole run takes seconds."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flax_vae.convert import PRESETS
from flax_vae.train.config.schema import DataConfig, OptimConfig, TrainConfig

SMALL = replace(PRESETS["tiny"], resolution=16, ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Returns a folder with four images of different sizes; `d.png` is the last by name."""
    path = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (20, 33), "b.jpg": (24, 24), "sub/c.png": (40, 21), "d.png": (30, 70)}.items():
        (path / name).parent.mkdir(exist_ok=True)
        rows, columns = np.mgrid[: shape[0], : shape[1]]
        smooth = np.stack([rows * 5, columns * 3, rows + columns], axis=-1)
        pixels = (smooth + rng.integers(0, 60, (*shape, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path / name)
    return path


@pytest.fixture(scope="session")
def small(folder):
    """Returns the config of a run of ten steps on `folder`."""
    return TrainConfig(
        model=SMALL,
        data=DataConfig(folder=str(folder), crop_size=16, held_out="d.png"),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=4),
        batch_size=4,
        steps=10,
        log_every=5,
        eval_every=100,
        save_every=5,
    )
