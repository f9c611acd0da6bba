"""A step that is compiled ahead of its first call, which then says what it costs."""

from collections.abc import Callable
from typing import Any

import jax

from flax_vae.ops import release_compiler_memory


class CompiledStep:
    """Compiles at the first call, once: a batch of another shape later is an error, not another compilation.

    Attributes:
      flops: operations of one call on one device, as the compiler counts them; None until then, or if it does not say.
    """

    def __init__(self, jit: Callable[[Any], Any], options: dict[str, Any] | None):
        """Compiles nothing yet.

        Args:
          jit: from a state to the function to lower.
          options: of the compiler.
        """
        self._jit, self._options = jit, options
        self._compiled: Any = None
        self.flops: float | None = None

    def lower(self, state: Any, batch: Any, constants: Any) -> Any:
        """The program of arrays, or of their shapes, before it is compiled."""
        return self._jit(state).lower(state, batch, constants)

    def __call__(self, state: Any, batch: jax.Array, constants: Any) -> Any:
        """Runs `(state, batch, constants) -> (state, scores)`."""
        if self._compiled is None:
            self._compiled = self.lower(state, batch, constants).compile(compiler_options=self._options)
            self.flops = (self._compiled.cost_analysis() or {}).get("flops")
            release_compiler_memory()
        return self._compiled(state, batch, constants)
