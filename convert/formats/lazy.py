"""Lazy arrays, computed when they are used, so that a model is not in memory twice."""

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from flax_vae.convert.errors import ArgumentError, ConversionError

# Dtypes that models can compute in.  Dtypes of eight bits only store weights.
FLOATS = {name: np.dtype(name) for name in ("float64", "float32", "float16", "bfloat16")}
assert FLOATS["bfloat16"] == ml_dtypes.bfloat16


def dtype_name(array: Any) -> str:
    """Returns numpy's (or ml_dtypes') name for the dtype of an array or of a PyTorch tensor.

    Args:
      array: Array or tensor.
    """
    return str(array.dtype).removeprefix("torch.")


def is_floating(array: Any) -> bool:
    """Returns whether an array has a floating-point dtype, of any width.

    Args:
      array: Array, or another object with a dtype.
    """
    return dtype_name(array).startswith(("float", "bfloat"))


class Deferred:
    """An array with known shape and dtype that is computed when used.

    `numpy.asarray` computes it, anew each time; `write_tensors` does so for one tensor at a time.

    Attributes:
      shape: Shape of the array.
      dtype: Dtype of the array.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, make: Callable[[], np.ndarray]):
        self.shape = shape
        self.dtype = dtype
        self._make = make

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        array = self._make()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"Deferred(shape={self.shape}, dtype={self.dtype})"


def apply(op: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], array: Any) -> Any:
    """Returns `op(array)`, lazily if the array is lazy.

    Args:
      op: Function that moves elements and keeps their dtype.
      shape: Shape of the result.
      array: Array, or anything that numpy converts to one.
    """
    if isinstance(array, Deferred):
        return Deferred(shape, array.dtype, lambda: op(np.asarray(array)))
    return op(np.asarray(array))


def cast(tensors: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns the tensors with floats rounded to `dtype`, lazily.

    Floats of eight bits are converted to `dtype` too.  Integers and booleans keep their dtype, since a counter is not a
    weight.

    Args:
      tensors: Arrays by name, or other objects with a shape and a dtype.
      dtype: One of float64, float32, float16, bfloat16.

    Raises:
      ValueError: If `dtype` is none of these.
      ConversionError: When an array is computed, if one of its finite values is too large for `dtype`.
    """
    if dtype not in FLOATS:
        raise ArgumentError(f"dtype={dtype!r} must be one of {', '.join(FLOATS)}", field="dtype", value=dtype)
    return {
        name: tensor
        if not is_floating(tensor) or tensor.dtype == FLOATS[dtype]
        else Deferred(tuple(tensor.shape), FLOATS[dtype], lambda n=name, t=tensor: _round(n, np.asarray(t), dtype))
        for name, tensor in tensors.items()
    }


def _round(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = array.astype(FLOATS[dtype])
    lost = int(np.count_nonzero(np.isfinite(array) & ~np.isfinite(rounded)))
    if lost:
        raise ConversionError(
            f"{lost} values of tensor {name!r} are too large for {dtype} and would become infinite; use bfloat16 or "
            "float32"
        )
    return rounded
