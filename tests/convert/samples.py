"""Random weights, and comparisons of weights and folders, for the tests of `flax_vae.convert`."""

import os
from pathlib import Path

import numpy as np

from flax_vae.convert import PRESETS, expand


def random_weights(
    seed: int = 0, params=PRESETS["tiny"], layout: str = "flux", dtype=np.float32
) -> dict[str, np.ndarray]:
    """Returns different numbers in every tensor."""
    rng = np.random.default_rng(seed)
    return {
        row.theirs: rng.standard_normal(row.torch_shape, np.float32).astype(dtype) for row in expand(params, layout)
    }


def assert_same(found, expected) -> None:
    """Checks names, dtypes, shapes and bits."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        other = np.asarray(found[name])
        assert other.dtype == array.dtype and other.shape == array.shape, name
        assert np.ascontiguousarray(other).tobytes() == np.ascontiguousarray(array).tobytes(), name


def everything_in(folder: Path) -> dict[str, bytes | str | None]:
    """Returns every path below a folder with its content or target; hidden names included."""
    return {
        str(p.relative_to(folder)): os.readlink(p) if p.is_symlink() else p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }
