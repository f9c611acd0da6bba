"""Compares dtypes and shapes of two pytrees; orbax casts silently on restore, so this runs first."""

from typing import Any, NamedTuple

import jax
import numpy as np

from flax_vae.train.errors import RunError


class Leaf(NamedTuple):
    """Shape and dtype of one array or number in a tree."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def describe_tree(tree: Any) -> dict[str, Leaf]:
    """Returns dtype and shape by path, for leaves that are arrays, numbers or specifications of arrays."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): Leaf(_dtype(leaf), tuple(np.shape(leaf)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def tree_differences(stored: dict[str, Leaf], asked: dict[str, Leaf]) -> list[str]:
    """Returns a phrase for each path with a leaf that is missing, unknown, or of another dtype or shape."""
    return [
        f"{path} is {stored.get(path, 'missing')} in the checkpoint and {asked.get(path, 'missing')} in this run"
        for path in sorted(stored.keys() | asked.keys())
        if stored.get(path) != asked.get(path)
    ]


def require_restorable(state: Any) -> None:
    """Checks that orbax can restore all leaves; it saves numpy scalars and 64-bit arrays but cannot restore them.

    Raises:
      RunError: If a leaf cannot be restored; names the first.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(leaf, jax.Array) or type(leaf) in (bool, int, float):
            continue
        if not isinstance(leaf, np.ndarray) or jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
            kind = f"{type(leaf).__module__}.{type(leaf).__name__}"
            of = f" of {leaf.dtype}" if isinstance(leaf, np.ndarray) else ""
            raise RunError(
                f"{name} of the state is a {kind}{of}, which a checkpoint cannot restore; make it a jax array"
            )


def _dtype(leaf: Any) -> str:
    return str(leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype)
