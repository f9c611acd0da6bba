"""The work in JAX: this package as a user gets it, with every option at its default."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flax_vae import AutoEncoder
from flax_vae.autoencoder import example_inputs
from flax_vae.ops.compilation import compiler_options, release_compiler_memory
from tests.benchmarks.process import ADAMW, free_bytes
from tests.benchmarks.rows import Row

Call = Callable[[], Any]


def build(row: Row, plain: bool) -> tuple[Call, float | None, float | None]:
    """Returns the work as a call that waits for its result, the seconds of compiling it, and the bytes that it moves.

    The bytes are those that the compiler counts, the body of a loop once.

    Args:
      row: the work.
      plain: decode as `AutoEncoder.decode` does where the row decodes in bands.

    Raises:
      MemoryError: if the compiled program needs more memory than is free.
    """
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is one of the things measured
    model = AutoEncoder(row.record, dtype=jnp.bfloat16 if row.half else None)
    without = {"bands": ("encoder",), "decode": ("encoder",), "encode": ("decoder",)}
    params = random_params(model, without.get(row.work, ()))
    rng = np.random.default_rng(1)
    latents = jnp.asarray(rng.standard_normal(row.latent_shape, np.float32))
    images = jnp.asarray(rng.uniform(-1, 1, (row.batch, row.px, row.px, row.record.in_channels)).astype(np.float32))
    if row.work == "training":
        return _training(model, params, images)
    if row.work == "bands" and not plain:
        from flax_vae.inference.banded_decode import decode_in_bands

        # It compiles its pieces by itself, so its first call has the compilation in it.
        return lambda: jax.block_until_ready(decode_in_bands(model, params, latents)), None, None
    if row.work in ("forward", "encode"):
        method = "encode" if row.work == "encode" else None
        inputs = images

        def work(params: dict, x: jax.Array) -> jax.Array:
            return model.apply({"params": params}, x, sample=False, method=method)
    else:
        inputs = latents

        def work(params: dict, x: jax.Array) -> jax.Array:
            return model.apply({"params": params}, x, method="decode")

    compiled, *numbers = _compile(work, params, inputs)
    return lambda: jax.block_until_ready(compiled(params, inputs)), *numbers


def _training(model: AutoEncoder, params: dict, images: jax.Array) -> tuple[Call, float, float | None]:
    optimizer = optax.adamw(**ADAMW)

    def loss(params: dict, images: jax.Array) -> jax.Array:
        output = model.apply({"params": params}, images, sample=False)
        return jnp.abs(output.astype(jnp.float32) - images).mean()

    def step(state: tuple, images: jax.Array) -> tuple[tuple, jax.Array]:
        params, moments = state
        value, gradients = jax.value_and_grad(loss)(params, images)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    state = params, optimizer.init(params)
    compiled, *numbers = _compile(step, state, images, donate_argnums=0)

    def call() -> jax.Array:
        nonlocal state
        state, value = compiled(state, images)
        jax.block_until_ready(state)
        return value

    return call, *numbers


def _compile(function: Callable, *args: Any, **options: Any) -> tuple[Callable, float, float | None]:
    start = time.perf_counter()
    # Compiled as `flax_vae.train.devices.parallel` compiles its step.
    options["compiler_options"] = compiler_options(jax.default_backend())
    compiled = jax.jit(function, **options).lower(*args).compile()
    seconds = time.perf_counter() - start
    release_compiler_memory()
    memory = compiled.memory_analysis()
    # A GPU says so by itself; a CPU's operating system would end some process, perhaps another one.
    if jax.default_backend() == "cpu" and memory is not None and memory.temp_size_in_bytes > free_bytes():
        needed, free = memory.temp_size_in_bytes / 1e9, free_bytes() / 1e9
        raise MemoryError(f"the compiled program needs {needed:.1f} GB, {free:.1f} are free")
    return compiled, seconds, (compiled.cost_analysis() or {}).get("bytes accessed")


def random_params(model: AutoEncoder, without: tuple[str, ...] = ()) -> dict:
    """Returns random weights, made one by one: `init` would run the model, whose peak is not what is measured."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *example_inputs(model), sample=False))["params"]
    rng = np.random.default_rng(0)

    def weight(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            values /= np.float32(np.sqrt(np.prod(leaf.shape[:-1])))
        elif path[-1].key == "scale":
            values = 1 + values / 10
        else:
            values /= 10
        return jnp.asarray(values, leaf.dtype)

    kept = {name: tree for name, tree in shapes.items() if name not in without}
    return jax.tree_util.tree_map_with_path(weight, kept)
