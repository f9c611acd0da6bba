"""Weights that lie in a bucket."""

import numpy as np
import pytest

from flax_vae.convert import PRESETS, expand, load_weights
from flax_vae.convert.errors import FileError
from flax_vae.convert.files import put_folder, write_at
from flax_vae.convert.weights import find_export, local_weights, open_weights, save_folder

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("model") / "m"
    save_folder(folder, TINY, {row.theirs: rng.standard_normal(row.torch_shape, np.float32) for row in expand(TINY)})
    return folder


def test_a_model_folder_a_file_in_it_and_a_run_are_read(model, bucket, tmp_path):
    place = f"{bucket}/{tmp_path.name}"
    put_folder(model, f"{place}/m")
    put_folder(model, f"{place}/run/export")
    write_at(f"{place}/run/metrics.jsonl", b"")
    expected = load_weights(model).tensors
    for name in ("m", "m/model.safetensors", "run"):
        weights = load_weights(f"{place}/{name}")
        assert weights.params == TINY
        assert all(np.array_equal(np.asarray(weights.tensors[key]), np.asarray(expected[key])) for key in expected)


def test_errors_name_the_address(bucket, tmp_path):
    place = f"{bucket}/{tmp_path.name}"
    with pytest.raises(FileNotFoundError, match=f"{place}/none does not exist"):
        open_weights(f"{place}/none")
    write_at(f"{place}/run/metrics.jsonl", b"")
    with pytest.raises(FileError, match=f"{place}/run has no export/ yet"), local_weights(f"{place}/run") as copy:
        find_export(copy)
    write_at(f"{place}/x.safetensors", b"nothing of the kind")
    with pytest.raises(FileError, match=f"{place}/x.safetensors"):
        load_weights(f"{place}/x.safetensors")
