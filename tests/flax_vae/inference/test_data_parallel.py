"""Programs of batches: compiled in the order of need, before the batches are there."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.inference import CompileAhead, DataParallel
from flax_vae.ops import CompileClock


def test_programs_are_compiled_ahead_and_used():
    doubled = DataParallel(lambda params, x: x * params["factor"], {"factor": jnp.float32(2)}, jax.local_devices())
    begun = []

    def start(thread, width):
        begun.append(width)
        return doubled.compile_in(thread, 3, jax.ShapeDtypeStruct((width,), np.float32))

    x = np.arange(3 * 5, dtype=np.float32).reshape(3, 5)
    with CompileAhead(start, [4, 5, 4, 6, 7]) as programs:
        programs.top_up()
        assert begun[:2] == [4, 5]
        programs.wait(6)
        assert begun == [4, 5, 6]
        with CompileClock() as clock:
            y = np.asarray(doubled(3, x))
        assert clock.last == -math.inf  # nothing was compiled in this thread
        np.testing.assert_array_equal(y[:3], 2 * x)
    assert doubled.compiling > 0


def test_an_error_of_the_compiler_is_raised_where_the_program_is_needed():
    def fail(thread, size):
        return thread.submit(lambda: 1 // size)

    with CompileAhead(fail, [1, 0]) as programs:
        programs.top_up()
        programs.wait(1)
        with pytest.raises(ZeroDivisionError):
            programs.wait(0)
