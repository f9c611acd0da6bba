"""Refuses weights with NaN or infinite values, before anything is computed from them."""

from typing import Any

import jax
import numpy as np

from flax_vae.convert.errors import shorten
from flax_vae.errors import NotFiniteError


def require_finite(params: Any, where: str) -> None:
    """Checks every value of a tree of arrays.

    One pass on the host, at about 1 GB/s, one array at a time; nothing is compiled.  Loading does not call it, since a
    conversion has to keep every bit; encoding, decoding, evaluating and training do, before their first result.

    Args:
      params: Tree of arrays, on any device of this process; integers are finite.
      where: Name of the weights in the message, such as their file.

    Raises:
      NotFiniteError: If a value is NaN or infinite; the message names the first arrays and counts the values.
    """
    wrong = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(jax.device_get(leaf))
        count = array.size - np.count_nonzero(np.isfinite(array))
        if count:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            wrong.append(f"{name} ({count:,} of {array.size:,})")
    if wrong:
        raise NotFiniteError(
            f"{where} holds values that are NaN or infinite, in {shorten(wrong)}; expected finite "
            "weights: use an earlier checkpoint or another file"
        )
