"""Single flipped bits in everything that holds weights or latents: found, or without effect on any number.

Which bits are flipped is a pure function of the seed; every test prints how many were found.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flax_vae import from_pretrained
from flax_vae.convert import PRESETS, ConversionError, expand
from flax_vae.convert.errors import FileError
from flax_vae.convert.files.manifest import MANIFEST, find_damage, read_manifest
from flax_vae.convert.formats.safetensors import write_tensors
from flax_vae.convert.latents.dataset import LatentDataset
from flax_vae.convert.table.identification import Weights
from flax_vae.convert.table.rows import unflatten
from flax_vae.convert.weights.folder import save_folder
from flax_vae.convert.weights.load import load_weights
from flax_vae.convert.weights.open import open_weights
from flax_vae.convert.weights.save import save_weights
from tests.convert.latents.test_dataset import write as write_latents

SMALL = replace(
    PRESETS["tiny"], resolution=8, ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=4, scale_factor=0.3611,
    shift_factor=0.1159,
)  # fmt: skip
REFUSED = (ConversionError, FileError, FileNotFoundError)


def numbers(layout: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = expand(SMALL, layout)
    return {row.theirs: rng.standard_normal(row.torch_shape, np.float32) for row in rows}


def exact(tree: Any) -> Any:
    """What can be compared bit for bit."""
    return jax.tree.map(lambda leaf: (np.asarray(leaf).dtype.name, np.asarray(leaf).tobytes()), tree)


def flips(files: list[Path], count: int, size: int | None = None) -> Iterator[None]:
    """Flips one bit after the other; half of them in files of equal chance, half in bytes of equal chance.

    Every file is as it was before the next flip, and in the end.

    Args:
      files: to choose from.
      count: of flips.
      size: of the part at the beginning of a file that they lie in; None for all of it.
    """
    rng = random.Random(0)
    whole = {path: path.read_bytes() for path in files}
    sizes = [len(content) for content in whole.values()]
    for number in range(count):
        path = rng.choice(files) if number % 2 else rng.choices(files, sizes)[0]
        content = bytearray(whole[path])
        content[rng.randrange(size or len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        yield
        path.write_bytes(whole[path])


def count_silent(files: list[Path], count: int, read: Callable[[], Any], size: int | None = None) -> Counter[str]:
    """Returns how many flips were found, changed nothing, or changed what the reader gives without an error."""
    expected = read()
    outcome: Counter[str] = Counter()
    for _ in flips(files, count, size):
        try:
            outcome["without effect" if read() == expected else "silent"] += 1
        except REFUSED:
            outcome["found"] += 1
    print(dict(outcome))
    assert read() == expected
    return outcome


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


@pytest.fixture(scope="module")
def step(tmp_path_factory) -> Path:
    """A checkpoint of a run with a moving average and a discriminator."""
    import jax.numpy as jnp

    from flax_vae.train.config.schema import TrainConfig
    from flax_vae.train.run.checkpoints import Checkpoints

    params = jax.tree.map(jnp.asarray, unflatten(numbers("flax")))
    state = {"params": params, "ema": jax.tree.map(lambda leaf: 2 * leaf, params), "discriminator": {"params": params}}
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder) as manager:
        manager.save(400, state, TrainConfig(SMALL), wait=True)
    return folder / "400"


READERS = {
    "flax_vae.from_pretrained": lambda path: exact(from_pretrained(path)[1]),
    "raw weights": lambda path: exact(from_pretrained(path, raw_weights=True)[1]),
    "flax-vae-convert": lambda path: exact(dict(load_weights(path).to("diffusers"))),
    "torch_ref.from_pretrained": None,
}


@pytest.mark.parametrize(
    "reader", [pytest.param(name, marks=pytest.mark.torch if name.startswith("torch") else ()) for name in READERS]
)
def test_a_checkpoint(step, reader):
    read = READERS[reader]
    if read is None:
        import torch_ref

        def read(path):
            state_dict = torch_ref.from_pretrained(path).state_dict()
            return {name: tensor.numpy().tobytes() for name, tensor in state_dict.items()}

    outcome = count_silent(files_in(step), 600, lambda: read(step))
    assert outcome["silent"] == 0
    assert outcome["found"] > 500


def test_the_recovery_of_the_trainer(step):
    expected = {path: path.read_bytes() for path in files_in(step)}
    for _ in flips(files_in(step), 600):
        if find_damage(step) is None:
            (changed,) = [path for path, content in expected.items() if path.read_bytes() != content]
            # Orbax writes them after the manifest, and reads from them only whether and when the step was complete.
            assert changed.relative_to(step).as_posix() in ("commit_success.txt", "_CHECKPOINT_METADATA")


def test_a_manifest(step):
    outcome = count_silent([step / MANIFEST], 300, lambda: read_manifest(step))
    assert outcome["silent"] == 0
    assert outcome["found"] > 250


def read_source(path: Path) -> Any:
    source = open_weights(path)
    return source.config, exact(dict(source.tensors))


def test_a_model_folder(tmp_path):
    save_folder(tmp_path, SMALL, numbers("flux"))
    for files in ([tmp_path / "config.json"], files_in(tmp_path)):
        outcome = count_silent(files, 300, lambda: read_source(tmp_path))
        assert outcome["silent"] == 0
        assert outcome["found"] > 200


def test_a_single_file_and_its_header(tmp_path):
    path = tmp_path / "vae.safetensors"
    save_weights(path, Weights(numbers("flux"), "flux", SMALL), "ldm")
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")

    def read():
        weights = load_weights(path)
        return weights.params, exact(dict(weights.to("flux")))

    for size in (header, None):
        outcome = count_silent([path], 300, read, size=size)
        assert outcome["silent"] == 0
        assert outcome["found"] > 200


def test_a_folder_of_diffusers(tmp_path):
    """Its `sample_size`, from which nothing is computed, is the caller's to change."""
    save_weights(tmp_path / "vae", Weights(numbers("flux"), "flux", SMALL), "diffusers")

    def read():
        config, tensors = read_source(tmp_path / "vae")
        return replace(config, resolution=8), tensors

    outcome = count_silent([tmp_path / "vae" / "config.json"], 300, read)
    assert outcome["silent"] == 0
    assert outcome["found"] > 150


def test_the_index_of_shards_and_the_shards(tmp_path):
    tensors, places = numbers("flux"), {}
    for number, part in enumerate(("encoder", "decoder"), 1):
        inside = {name: array for name, array in tensors.items() if name.startswith(part)}
        places |= dict.fromkeys(inside, f"model-0000{number}-of-00002.safetensors")
        write_tensors(tmp_path / f"model-0000{number}-of-00002.safetensors", inside)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}, indent=2))
    for files in ([index], files_in(tmp_path)):
        outcome = count_silent(files, 300, lambda: read_source(index))
        assert outcome["silent"] == 0
        assert outcome["found"] > 200


def test_latents(tmp_path):
    write_latents(tmp_path)

    def read():
        latents = LatentDataset(tmp_path)
        return latents.statistics, latents.index, [exact(latents[position]) for position in range(len(latents))]

    for files in ([tmp_path / "index.json"], sorted(tmp_path.glob("*.safetensors"))):
        outcome = count_silent(files, 300, read)
        assert outcome["silent"] == 0
        assert outcome["found"] > 150
