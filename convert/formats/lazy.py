"""Arrays that are made when they are asked for, so that a whole model need not be in memory twice."""

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from flax_vae.convert.errors import ConversionError

# The dtypes that a model computes in.  Those of eight bits only store weights.
FLOATS = {name: np.dtype(name) for name in ("float64", "float32", "float16", "bfloat16")}
assert FLOATS["bfloat16"] == ml_dtypes.bfloat16


def dtype_name(array: Any) -> str:
    """Returns the name that numpy and ml_dtypes give the dtype of an array, or of a tensor of PyTorch."""
    return str(array.dtype).removeprefix("torch.")


def is_floating(array: Any) -> bool:
    """Returns whether the numbers of an array are floating-point numbers, of any width."""
    return dtype_name(array).startswith(("float", "bfloat"))


class Deferred:
    """An array whose shape and dtype are known and whose numbers are not made yet.

    `numpy.asarray` makes them, anew each time; `write_tensors` does so for one tensor at a time.

    Attributes:
      shape: of the array.
      dtype: of the array.
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
    """Returns `op(array)`, later if the array itself is one that is made later.

    Args:
      op: anything that moves numbers and keeps their dtype.
      shape: of the result.
      array: an array, or anything that numpy can turn into one.
    """
    if isinstance(array, Deferred):
        return Deferred(shape, array.dtype, lambda: op(np.asarray(array)))
    return op(np.asarray(array))


def cast(tensors: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Returns the tensors with every float of another dtype rounded to `dtype`, when it is asked for.

    Floats of eight bits become `dtype` too.  Whole numbers and booleans stay what they are: a counter is not a weight.

    Args:
      tensors: name to array, or to anything else with a shape and a dtype.
      dtype: one of float64, float32, float16, bfloat16.

    Raises:
      ValueError: if `dtype` is none of them.
      ConversionError: later, while an array is made, if a finite number of it is too large for `dtype`.
    """
    if dtype not in FLOATS:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(FLOATS)}")
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
            f"{lost} numbers of tensor {name!r} are too large for {dtype} and would become infinite; use bfloat16 or "
            "float32"
        )
    return rounded
