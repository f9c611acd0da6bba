"""Weights that are not finite are refused, and named."""

import jax.numpy as jnp
import numpy as np
import pytest

from flax_vae.errors import UserError
from flax_vae.finite import require_finite


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_among_many_is_found_and_named(value, dtype):
    kernel = jnp.ones((3, 3, 40, 40), dtype)
    params = {"decoder": {"conv_in": {"kernel": kernel}, "steps": jnp.arange(3)}}
    require_finite(params, "model")
    params["decoder"]["conv_in"]["kernel"] = kernel.at[1, 2, 30, 7].set(value)
    with pytest.raises(UserError, match=r"^model holds .* in decoder/conv_in/kernel \(1 of 14,400\); expected finite"):
        require_finite(params, "model")


def test_the_first_arrays_are_named_and_the_others_counted():
    params = {f"conv_{i}": np.full(4, np.nan, np.float32) for i in range(5)}
    with pytest.raises(UserError, match=r"conv_0 \(4 of 4\), conv_1 \(4 of 4\), conv_2 \(4 of 4\) and 2 more; "):
        require_finite(params, "model")
