"""Tests of checksums: every bit counts, and copies on two devices are compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from flax_vae.train.devices.parallel import MeshParallel
from flax_vae.train.devices.state_checksums import checksums

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8", "bool", "float8_e4m3fn"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_flipped_bit_of_any_dtype_changes_the_checksum(dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (3, 5)).astype(jnp.dtype(dtype)) if dtype == "bool" else rng.normal(size=(3, 5)) * 9
    values = np.asarray(values).astype(jnp.dtype(dtype))
    before = checksums({"a": jnp.asarray(values)})
    assert checksums({"a": jnp.asarray(values.copy())}) == before
    seen = {before["a"]}
    bits = 1 if dtype == "bool" else 8 * values.dtype.itemsize
    for place in (0, 7, 14):
        for bit in range(bits):
            other = values.copy()
            words = other.reshape(-1).view(f"u{other.dtype.itemsize}")
            words[place] ^= np.asarray(1 << bit, words.dtype)
            seen.add(checksums({"a": jnp.asarray(other)})["a"])
    assert len(seen) == 1 + 3 * bits


def test_permuted_values_change_the_checksum():
    assert checksums([jnp.array([1.0, 2.0, 3.0])]) != checksums([jnp.array([2.0, 1.0, 3.0])])
    assert checksums([jnp.zeros(3)]) == checksums([jnp.zeros(3)])


def test_all_bits_of_float64_count(x64):
    value = 1.0
    assert checksums([jnp.array(value)]) != checksums([jnp.array(np.nextafter(value, 2))])


def test_numpy_arrays_have_checksums():
    assert checksums({"b": np.arange(3)}) != checksums({"b": np.arange(1, 4)})


def test_differing_copies_are_reported_and_shards_left_out():
    parallel = MeshParallel()
    first, second = jax.devices()
    same = parallel.replicate(jnp.ones((2, 3)))
    share = jax.device_put(jnp.ones((2, 3)), NamedSharding(parallel.replicated.mesh, PartitionSpec("data")))
    pieces = [jax.device_put(jnp.ones((2, 3)), first), jax.device_put(jnp.ones((2, 3)).at[1, 1].set(2), second)]
    drifted = jax.make_array_from_single_device_arrays((2, 3), parallel.replicated, pieces)
    with jax.transfer_guard("disallow"):
        found = checksums({"drifted": drifted, "same": same, "share": share})
    assert found.keys() == {"drifted", "same"}
    assert found["same"] in found["drifted"] and found["drifted"].endswith(" on its devices")
