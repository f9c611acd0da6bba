"""How the memory of one attention grows with the number of positions.

`python -m tests.benchmarks.attention_memory WHAT N` prints the bytes that one call takes beside its inputs and outputs:
what the compiled program declares, or what the process grew by where that is more, for on a CPU XLA may give a whole
attention to a kernel library and declare nothing.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.benchmarks.process import die_first, free_bytes, peak_bytes, resident_bytes

CHANNELS = 64
POSITIONS = (64**2, 128**2, 192**2, 256**2)
WHAT = ("forward", "forward and backward")
LINEAR = 1.1  # exponents up to here are called linear


def temporaries(what: str, positions: int) -> int:
    """Bytes of one call.  An accelerator's program is not run: there the compiler plans all memory."""
    import jax
    import jax.numpy as jnp

    from flax_vae.attention import attention

    def both(q, k, v, cotangent):
        out, pull = jax.vjp(attention, q, k, v)
        return out, pull(cotangent)

    jax.config.update("jax_enable_compilation_cache", False)
    rng = np.random.default_rng(0)
    count = 3 if what == "forward" else 4
    arrays = [jnp.asarray(rng.standard_normal((1, positions, CHANNELS), np.float32)) for _ in range(count)]
    compiled = jax.jit(attention if what == "forward" else both).lower(*arrays).compile()
    memory = compiled.memory_analysis()
    declared = memory.temp_size_in_bytes
    reset = Path("/proc/self/clear_refs")
    if jax.default_backend() != "cpu" or not reset.exists() or declared > free_bytes():
        return declared
    reset.write_text("5", encoding="ascii")  # the peak of compiling is forgotten
    before = resident_bytes()
    jax.block_until_ready(compiled(*arrays))
    return max(declared, peak_bytes() - before - memory.output_size_in_bytes)


def measure(ask: Callable[[str, str], int]) -> dict[str, dict[int, int]]:
    """Bytes by what is computed and by positions; sizes that quadratic growth would not let fit are left out."""
    found: dict[str, dict[int, int]] = {}
    for what in WHAT:
        sizes = found[what] = {}
        for n in POSITIONS:
            if sizes and list(sizes.values())[-1] * (n / list(sizes)[-1]) ** 2 > free_bytes():
                break
            sizes[n] = ask(what, str(n))
    return found


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The p of the power law `value = constant * size ** p`, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def report(found: dict[str, dict[int, int]]) -> list[str]:
    """A line for each thing computed: the bytes, the exponent, and whether that is linear."""
    lines = []
    for what, sizes in found.items():
        power = exponent(list(sizes), list(sizes.values()))
        verdict = "linear" if power <= LINEAR else "NOT linear"
        values = ", ".join(f"{math.isqrt(n)} px {value / 1e6:.1f} MB" for n, value in sizes.items())
        lines.append(f"attention, {CHANNELS} channels, {what}: {values}: grows as (h w)^{power:.2f}, {verdict}")
    return lines


if __name__ == "__main__":
    die_first()
    print(json.dumps(temporaries(sys.argv[1], int(sys.argv[2]))))
