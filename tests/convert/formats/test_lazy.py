import ml_dtypes
import numpy as np
import pytest

from flax_vae.convert.errors import ConversionError
from flax_vae.convert.formats.lazy import Deferred, cast
from flax_vae.convert.formats.safetensors import list_tensors, read_tensors, write_tensors


def test_nothing_is_made_until_it_is_asked_for(tmp_path):
    made = []
    tensors = {
        name: Deferred((2,), np.dtype("float32"), lambda n=name: (made.append(n), np.full(2, 7, np.float32))[1])
        for name in "ab"
    }
    assert tensors["a"].shape == (2,) and np.shape(tensors["a"]) == (2,) and made == []
    write_tensors(tmp_path / "a.safetensors", tensors)
    assert made == ["a", "b"]
    assert read_tensors(tmp_path / "a.safetensors")["b"].tolist() == [7, 7]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_floats_are_rounded_and_counters_are_kept(tmp_path, dtype):
    numbers = np.array([1 / 3, -2.5e-3, np.nan, np.inf, 0.0], np.float32)
    tensors = {
        "single": numbers,
        "brain": numbers.astype(ml_dtypes.bfloat16),
        "steps": np.array(2**40),
        "mask": np.array([True]),
    }
    rounded = cast(tensors, dtype)
    write_tensors(tmp_path / "a.safetensors", rounded)
    kinds = {name: info.dtype for name, info in list_tensors(tmp_path / "a.safetensors").items()}
    assert kinds == {"single": dtype, "brain": dtype, "steps": "int64", "mask": "bool"}
    back = read_tensors(tmp_path / "a.safetensors")
    for name, array in tensors.items():
        assert back[name].tobytes() == array.astype(kinds[name]).tobytes()
    same = [name for name, array in tensors.items() if array.dtype.name == kinds[name]]
    assert all(rounded[name] is tensors[name] for name in same)


EIGHT_BITS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("source", EIGHT_BITS)
def test_floats_of_eight_bits_become_what_was_asked_for(tmp_path, source, dtype):
    numbers = np.array([0.25, 1, 2, 16], getattr(ml_dtypes, source))
    write_tensors(tmp_path / "a.safetensors", {"a": numbers})
    rounded = cast(read_tensors(tmp_path / "a.safetensors"), dtype)["a"]
    assert rounded.dtype.name == np.asarray(rounded).dtype.name == dtype
    assert np.asarray(rounded).astype(float).tolist() == [0.25, 1, 2, 16]


def test_numbers_that_would_become_infinite_are_refused(tmp_path):
    tensors = {"fine": np.ones(3), "large": np.array([1.0, 1e6, -1e6])}
    with pytest.raises(ConversionError, match="2 values of tensor 'large' are too large for float16.*use bfloat16"):
        write_tensors(tmp_path / "a.safetensors", cast(tensors, "float16"))
    assert list(tmp_path.iterdir()) == []


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="dtype='int8' must be one of float64, float32, float16, bfloat16"):
        cast({}, "int8")
