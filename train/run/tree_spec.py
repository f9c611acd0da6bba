"""What a tree consists of: compared before a checkpoint is restored, because orbax casts to another dtype silently."""

from typing import Any, NamedTuple

import jax
import numpy as np

from flax_vae.train.errors import RunError


class Leaf(NamedTuple):
    """One array or number of a tree."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def describe_tree(tree: Any) -> dict[str, Leaf]:
    """Path to dtype and shape, whether a leaf is an array, a number, or only speaks of one."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): Leaf(_dtype(leaf), tuple(np.shape(leaf)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def tree_differences(stored: dict[str, Leaf], asked: dict[str, Leaf]) -> list[str]:
    """One phrase for each path whose leaf is missing, unknown, or of another dtype or shape."""
    return [
        f"{path} is {stored.get(path, 'not')} there and {asked.get(path, 'not')} here"
        for path in sorted(stored.keys() | asked.keys())
        if stored.get(path) != asked.get(path)
    ]


def require_restorable(state: Any) -> None:
    """Refuses what orbax saves and then cannot restore: numpy's scalars and its 64-bit arrays.

    Raises:
      RunError: naming the first of them.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(leaf, jax.Array) or type(leaf) in (bool, int, float):
            continue
        if not isinstance(leaf, np.ndarray) or jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            kind = f"{type(leaf).__module__}.{type(leaf).__name__}"
            of = f" of {leaf.dtype}" if isinstance(leaf, np.ndarray) else ""
            raise RunError(
                f"{name} of the state is a {kind}{of}, which a checkpoint cannot give back; make it a jax array"
            )


def _dtype(leaf: Any) -> str:
    return str(leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype)
