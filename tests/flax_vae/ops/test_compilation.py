"""What is said to the compiler is understood, and is worth saying."""

import jax
import jax.numpy as jnp
import optax

from flax_vae.ops import compilation


def test_a_training_step_is_ordered_for_memory_on_a_cpu(optimised):
    optimizer = optax.adam(1e-3)
    weights = [jnp.zeros((256, 256))] * 12

    def step(weights, moments, x):
        def loss(weights):
            h = x
            for weight in weights:
                h = jnp.tanh(h @ weight)
            return h.sum()

        updates, moments = optimizer.update(jax.grad(loss)(weights), moments)
        return optax.apply_updates(weights, updates), moments

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(weights, optimizer.init(weights), jnp.zeros((8, 256)))
    sizes = [
        lowered.compile(compiler_options=options).memory_analysis().temp_size_in_bytes
        for options in ({}, compilation.compiler_options("cpu"))
    ]
    assert sizes[1] < 0.7 * sizes[0]


def test_other_platforms_need_nothing():
    assert compilation.compiler_options("tpu") == compilation.compiler_options("gpu") == {}


def test_releasing_memory_does_no_harm(monkeypatch):
    compilation.release_compiler_memory()
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    compilation.release_compiler_memory()


def test_compiled_programs_are_kept(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        compilation.cache_compilations(tmp_path / "new" / "cache")
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "new" / "cache")
        assert (tmp_path / "new" / "cache").is_dir()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
