"""Describes a file or folder of weights without building a model: `flax-vae-convert inspect`."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from flax_vae.convert.errors import ConversionError
from flax_vae.convert.formats import DIGEST, ArrayLike, is_floating
from flax_vae.convert.table import NOT_INFERABLE, Weights, fitting_presets, identify, nearest_preset
from flax_vae.convert.weights import WeightFile


def inspect(source: WeightFile, prefix: str | None = None) -> dict[str, Any]:
    """Returns a report for JSON; its entry `problem` is None if the weights were identified.

    Unknown values in its `architecture` are None, such as scale, shift and padding of a single file.  Reads every
    tensor once, one at a time, to find values that are not finite.
    """
    report: dict[str, Any] = {
        "path": str(source.path),
        "kind": source.kind,
        "digest": "verified" if DIGEST in source.metadata or source.kind == "orbax" else "none",
        "averaged": source.averaged,
        "problem": None,
    }
    tensors: Mapping[str, ArrayLike] = source.tensors
    try:
        weights = identify(source.tensors, source.config, prefix=prefix, layout=source.layout)
    except ConversionError as error:
        report["problem"] = str(error)
    else:
        tensors = weights.tensors
        report |= _identified(weights)
    report |= summary(tensors.values())
    report["non_finite"] = [name for name, tensor in tensors.items() if not _finite(tensor)]
    return report


def summary(tensors: Iterable[ArrayLike]) -> dict[str, Any]:
    """Counts tensors, values and dtypes."""
    tensors = list(tensors)
    return {
        "tensors": len(tensors),
        "numbers": sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors),
        "dtypes": dict(Counter(str(np.dtype(tensor.dtype)) for tensor in tensors).most_common()),
    }


def _identified(weights: Weights) -> dict[str, Any]:
    nearest, differences = nearest_preset(weights.params)
    return {
        "layout": weights.layout,
        "prefix": weights.prefix,
        "left_out": list(weights.left_out),
        "architecture": weights.params.to_dict() | dict.fromkeys(_unknown(weights)),
        "config_known": weights.config_known,
        "unknown": _unknown(weights),
        "presets": fitting_presets(weights.params),
        "nearest_preset": nearest,
        "differences": differences,
    }


def _unknown(weights: Weights) -> list[str]:
    """Returns the fields that neither a configuration nor a shape determines."""
    if weights.config_known:
        return []
    normalised = vars(weights.params).get("latent_norm") == "batch_norm"
    told = dict.fromkeys(("scale_factor", "shift_factor", "latent_mean", "latent_std"), normalised)  # it replaces them
    told |= {"batch_norm_eps": not normalised, "time_embedding": weights.params.time_emb_dim is None}
    return [name for name in NOT_INFERABLE if not told.get(name, False)]


def _finite(tensor: ArrayLike) -> bool:
    if not is_floating(tensor):
        return True
    return bool(np.isfinite(np.asarray(tensor)).all())
