"""What is said to the compiler is understood, and is worth saying."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import optax
import pytest

from flax_vae.ops import compilation


@pytest.mark.cpu
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


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A user who has chosen nothing yet, and whose cache folder is in `tmp_path`."""
    names = ("compilation_cache_dir", "enable_compilation_cache", "persistent_cache_min_compile_time_secs")
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("FLAX_VAE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache" / "flax-vae" / "programs"
    for name, value in before.items():
        jax.config.update(name, value)


def test_commands_store_programs_in_the_users_cache_folder(cache, capsys):
    compilation.cache_for_command(None)
    (folder,) = cache.iterdir()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert str(cache) in capsys.readouterr().err
    names = {"old": 40, "used": 20}
    for name, days in names.items():
        file = folder / f"{name}-cache"
        file.touch()
        then = file.stat().st_mtime - days * 24 * 3600
        os.utime(file, (then, then))
    jax.config.update("jax_compilation_cache_dir", None)
    compilation.cache_for_command(None)
    assert [file.name for file in folder.iterdir()] == ["used-cache"]
    assert capsys.readouterr().err == ""  # it was said


def test_the_choices_of_the_user_come_first(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    compilation.cache_for_command(None)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    compilation.cache_for_command(None)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    compilation.cache_for_command("off")
    assert not jax.config.jax_enable_compilation_cache
    jax.config.update("jax_compilation_cache_dir", None)
    compilation.cache_for_command(None)
    assert not cache.exists()


def test_a_cache_folder_that_cannot_be_written_is_no_error_unless_it_was_chosen(cache, tmp_path, capsys):
    (tmp_path / "cache").touch()
    compilation.cache_for_command(None)
    assert jax.config.jax_compilation_cache_dir is None
    assert capsys.readouterr().err == ""
    with pytest.raises(OSError):
        compilation.cache_for_command(str(tmp_path / "cache" / "programs"))
    compilation.cache_compilations(tmp_path / "new" / "cache")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "new" / "cache")
    assert (tmp_path / "new" / "cache").is_dir()


def test_only_its_own_thread_moves_a_compile_clock():
    with compilation.CompileClock() as clock, ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: jax.jit(lambda x: x * 3.25)(1.0)).result()
        assert clock.last == -math.inf
        jax.jit(lambda x: x * 4.25)(1.0)
        assert clock.last > 0
