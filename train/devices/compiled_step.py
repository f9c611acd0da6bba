"""A training step that is compiled ahead of time, with its cost."""

from collections.abc import Callable
from typing import Any

import jax

from flax_vae.ops import release_compiler_memory


class CompiledStep:
    """Compiles at the first call, once; a batch of another shape later is an error, not a recompilation.

    Attributes:
      flops: Operations of one call on one device, as counted by the compiler; None before the first call, or if the
        compiler does not count them.
    """

    def __init__(self, jit: Callable[[Any], Any], options: dict[str, Any] | None):
        """Stores the arguments; nothing is compiled yet.

        Args:
          jit: Function that takes a state and returns the function to lower.
          options: Compiler options.
        """
        self._jit, self._options = jit, options
        self._compiled: Any = None
        self.flops: float | None = None

    def lower(self, state: Any, batch: Any, constants: Any) -> Any:
        """Returns the lowered program for arrays, or for their shapes, before compilation."""
        return self._jit(state).lower(state, batch, constants)

    def __call__(self, state: Any, batch: jax.Array, constants: Any) -> Any:
        """Runs `(state, batch, constants) -> (state, scores)`."""
        if self._compiled is None:
            self._compiled = self.lower(state, batch, constants).compile(compiler_options=self._options)
            self.flops = (self._compiled.cost_analysis() or {}).get("flops")
            release_compiler_memory()
        return self._compiled(state, batch, constants)
