"""Two or four devices per image, for one image or several, give the results of one device.

`python -m tests.train.devices.test_devices_per_image FOLDER` makes the runs that need eight devices, and writes
them down.
"""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from flax_vae.ops.compilation import compiler_options
from flax_vae.train.build import make_components, make_state
from flax_vae.train.config.schema import DataConfig, GanConfig, LossConfig, OptimConfig, TrainConfig
from flax_vae.train.devices.parallel import make_parallel
from flax_vae.train.errors import TrainError
from flax_vae.train.losses.perceptual import NETS, Lpips
from flax_vae.train.plan.dry_run import describe_run
from flax_vae.train.step import train_step
from tests.train.conftest import SMALL
from tests.train.runs import ENVIRONMENT, ROOT

STEPS = 3
# At 32 pixels its maps have 7, 3 and 1 rows, the discriminator's 16, 15 and 14; none is a multiple of four.
STAGES = tuple(replace(stage, widths=(4,)) for stage in NETS["alex"][:3])
CONFIG = TrainConfig(
    model=replace(SMALL, attn_levels=()),
    data=DataConfig(crop_size=32),
    loss=LossConfig(kl_weight=1e-2, lpips_weight=1.0, lpips_net="alex", learn_logvar=True),
    optim=OptimConfig(ema_decay=0.9),
    gan=GanConfig(weight=0.5, start=1, features=8, layers=1),
    batch_size=4,
    parallel="mesh",
)
ONE, *MANY = LAYOUTS = {"1x1": (1, 1, False), "4x2": (8, 2, False), "2x4": (8, 4, True)}


def run(components, start, weights, devices, rows, zero):
    """Runs three updates; returns leaves of the state and scores by name, and `temporaries` in bytes per device."""
    parallel = make_parallel("mesh", devices_per_image=rows, zero=zero, devices=jax.devices()[:devices])
    parallel.check_batch_size(CONFIG.batch_size)
    images = np.random.default_rng(0).uniform(-1, 1, (STEPS, 4, 32, 32, 3)).astype(np.float32)
    state, constants = parallel.place_state(start), parallel.replicate(weights)
    step = parallel.compile(
        partial(train_step, components=components, config=replace(CONFIG, devices_per_image=rows, zero=zero))
    )
    lowered = step.lower(state, parallel.batch_shape(4, 32), constants)
    program = lowered.compile(compiler_options=compiler_options("cpu"))
    found = {"temporaries": np.asarray(program.memory_analysis().temp_size_in_bytes)}
    for number, batch in enumerate(images):
        state, scores = program(state, parallel.place_batch(batch), constants)
        found |= {f"{name} {number}": np.asarray(value) for name, value in scores.items()}
    leaves = jax.tree.leaves_with_path(jax.device_get(state))
    return found | {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def run_all(folder):
    """Writes the results of each layout to a file."""
    NETS["alex"] = STAGES
    # Plain gradient descent with short steps; with long ones, rounding would soon move layouts across a kink.
    plain = {"optimizer": optax.sgd(0.01), "d_optimizer": optax.sgd(0.01), "schedule": optax.constant_schedule(0.01)}
    start = make_state(CONFIG, replace(make_components(CONFIG), **plain))
    pair = np.zeros((2, 1, 32, 32, 3), np.float32)
    weights = {"lpips": jax.jit(Lpips(STAGES).init)(jax.random.key(1), *pair)["params"]}
    for layout, (devices, rows, zero) in LAYOUTS.items():
        components = replace(make_components(replace(CONFIG, devices_per_image=rows)), **plain)
        np.savez(folder / f"{layout}.npz", **run(components, start, weights, devices, rows, zero))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the results by layout, data x rows."""
    folder = tmp_path_factory.mktemp("rows")
    environment = os.environ | ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "8", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    command = [sys.executable, "-m", "tests.train.devices.test_devices_per_image", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return {name: dict(np.load(folder / f"{name}.npz")) for name in LAYOUTS}


@pytest.mark.parametrize("layout", MANY)
def test_several_devices_per_image_equal_one_device(runs, layout):
    """Scores agree to float32 rounding, leaves relative to the size of their values."""
    ours, theirs = runs[layout], runs[ONE]
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"temporaries"}:
        size = np.sqrt(np.mean(np.square(theirs[name], dtype=np.float64)))
        # The gradient of a bias before a norm is pure rounding.
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-4 * size + 1e-7, err_msg=name)
    assert ours["d_weight 2"] > ours["d_weight 0"] == 0
    assert ours["lpips 0"] > 0


@pytest.mark.parametrize("layout", MANY)
def test_memory_of_a_device_falls_with_devices_per_image(runs, layout):
    assert runs[layout]["temporaries"] < 0.2 * runs[ONE]["temporaries"]


@dataclass(frozen=True)
class Chip:
    """A chip of a pod of two processes, numbered across the processes."""

    id: int
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


POD = [Chip(number, number // 2 % 2) for number in range(8)]


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_each_process_reads_a_contiguous_slice_of_whole_images(monkeypatch, rows):
    read = []
    for process in range(2):
        monkeypatch.setattr("jax.local_devices", lambda: [chip for chip in POD if chip.process_index == process])  # noqa: B023
        parallel = make_parallel("mesh", devices_per_image=rows, devices=POD)
        where = parallel.batch_sharding.devices_indices_map((8, 64, 64, 3))
        read.append(parallel.local_slice(8))
        # Its devices hold exactly the slice that it reads, each row once.
        held = Counter((image, row) for chip in parallel.local_devices for image, row in positions(where[chip]))
        assert held == Counter((image, row) for image in read[-1] for row in range(64))
    assert [number for share in read for number in share] == list(range(8))


def positions(index):
    images, rows = (range(size)[part] for size, part in zip((8, 64), index, strict=False))
    return [(image, row) for image in images for row in rows]


def test_steps_compile_for_devices_that_are_not_attached():
    for mode in ("pmap", "mesh"):
        parallel = make_parallel(mode, devices=POD)
        assert parallel.local_devices == []
    assert make_parallel("pmap", devices=POD).batch_shape(16, 32).shape == (8, 2, 32, 32, 3)
    cut = make_parallel("mesh", devices_per_image=2, devices=POD).batch_shape(16, 32)
    assert cut.shape == (16, 32, 32, 3)
    assert cut.sharding.shard_shape(cut.shape) == (4, 16, 32, 3)


def test_indivisible_numbers_of_devices_are_refused():
    with pytest.raises(
        TrainError, match="devices_per_image=3 must divide 2, the number of devices of a process.*; use 1 or 2$"
    ):
        make_parallel("mesh", devices_per_image=3)
    with pytest.raises(TrainError, match="devices_per_image=8 must divide 4"):
        make_parallel("mesh", devices_per_image=8, devices=POD)
    with pytest.raises(
        TrainError, match="batch_size=6 .* by 4 groups of devices_per_image=2 devices; use a multiple of 4"
    ):
        make_parallel("mesh", devices_per_image=2, devices=POD).check_batch_size(6)


def test_a_dry_run_prints_devices_per_image(small, tmp_path):
    text = describe_run(
        replace(small, parallel="mesh", devices_per_image=2, data=replace(small.data, crop_size=20)), tmp_path
    )
    assert "# memory in MiB on each of 2 cpu devices, 2 to an image, without workspace:\n" in text


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
