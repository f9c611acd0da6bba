"""The same images from any kind of source: the same pixels, labels and, by `encode`, the same latents bit for bit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flax_vae import AutoEncoder, init_params
from flax_vae.convert import PRESETS
from flax_vae.convert.latents import LatentDataset
from flax_vae.folders import BatchLimits, encode_folder, encoding_of
from flax_vae.images import open_images
from tests.packed import KINDS, pack

SMALL = replace(PRESETS["tiny"], ch=32, ch_mult=(1, 1), z_channels=4)
SIZES = [(8, 12), (8, 8), (7, 12)]  # padded: two


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a dozen images, JPEG and PNG in class folders: of several sizes, and of one."""
    rng, made = np.random.default_rng(0), {}
    for name, sizes in (("mixed", SIZES), ("one size", SIZES[:1])):
        made[name] = folder = tmp_path_factory.mktemp("images")
        for number in range(12):
            path = folder / "cab"[number % 3] / "deeper" / f"{number:02}.{'png' if number % 4 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*sizes[number % len(sizes)], 3), np.uint8)).save(path)
    return made


@pytest.fixture(scope="module")
def encode(tmp_path_factory):
    """A function that encodes an address, with one model for all."""
    model = AutoEncoder(SMALL, dtype=jnp.float32)
    params = init_params(model, jax.random.key(0))
    encoding = encoding_of(model, params, store="sample", dtype="float32", flip=True, seed=0)

    def call(address):
        folder = tmp_path_factory.mktemp("latents") / "latents"
        encode_folder(address, folder, model, params, encoding, BatchLimits(batch_size=4, shard_size=8))
        return LatentDataset(folder)

    return call


@pytest.fixture(scope="module")
def expected(folders, encode):
    return {name: encode(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_kind_of_source_gives_the_same(folders, encode, expected, tmp_path, kind):
    pytest.importorskip({"parquet": "pyarrow", "arrayrecord": "array_record"}.get(kind, "numpy"))
    name = "one size" if kind == "npz" else "mixed"
    address = pack(folders[name], kind, tmp_path)
    folder, source = open_images(str(folders[name])), open_images(address)
    assert len(source) == len(folder) == 12
    for index in range(12):
        np.testing.assert_array_equal(source[index], folder[index])
        assert source.label(index) == (None if kind == "arrayrecord" else folder.label(index))
    found, latents = expected[name], encode(address)
    assert len(latents) == len(found) == 24
    for position in range(24):
        ours, theirs = latents[position], found[position]
        assert (ours["number"], ours["flipped"]) == (theirs["number"], theirs["flipped"])
        assert kind == "arrayrecord" or ours["label"] == theirs["label"] is not None
        np.testing.assert_array_equal(ours["latent"], theirs["latent"])
