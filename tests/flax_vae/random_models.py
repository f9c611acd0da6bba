"""Models that hold random numbers everywhere: a norm's scale of one and bias of zero would hide that they were lost."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from flax_vae import AutoEncoder, init_params
from flax_vae.convert import AutoEncoderParams

PLAIN = AutoEncoderParams(
    resolution=16,
    in_channels=3,
    ch=32,
    out_ch=3,
    ch_mult=(1, 2),
    num_res_blocks=1,
    z_channels=4,
    scale_factor=0.3611,
    shift_factor=0.1159,
    attn_levels=(),
    downsample_padding="asymmetric",
)


# For programs in float64, which judges what is computed: each runs once, on next to nothing, and most of its time would
# go into compiling it well.  Old code generation takes half as long as that by fusion emitters; newer releases have
# only those.
QUICKLY: dict[str, str | bool | int | float] = {}
if jax.default_backend() == "cpu":
    QUICKLY["xla_backend_optimization_level"] = 0
    if jax.__version_info__ < (0, 11):
        QUICKLY["xla_cpu_use_fusion_emitters"] = False
quick_jit = partial(jax.jit, compiler_options=QUICKLY)


def random_params(model: AutoEncoder, dtype="float32", seed=0):
    """Parameters of float32 numbers, held in `dtype`."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        numbers = rng.standard_normal(leaf.shape)
        match path[-1].key:
            case "scale":
                numbers = 1 + 0.2 * numbers
            case "running_var":
                numbers = np.abs(numbers) + 0.2
            case "kernel":
                numbers *= np.prod(leaf.shape[:-1]) ** -0.5
            case _:
                numbers *= 0.2
        return jnp.asarray(numbers.astype(np.float32), dtype)

    tree = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, tree)


def random_inputs(record: AutoEncoderParams, shape: tuple[int, int, int], channels: int, seed=1):
    """A batch of `b h w` maps and a time where the model takes one, float32."""
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((*shape, channels)).astype(np.float32)
    if record.time_emb_dim is None:
        return maps, None
    linear = record.time_embedding == "linear"
    time = rng.standard_normal((shape[0], record.time_emb_dim)) if linear else rng.uniform(0, 1000, shape[0])
    return maps, time.astype(np.float32)


def apart(ours, expected) -> float:
    """The largest difference, of the expected numbers' RMS."""
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    assert ours.shape == expected.shape
    return np.abs(ours - expected).max() / np.sqrt(np.square(expected).mean())
