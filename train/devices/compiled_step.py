"""A training step that is compiled ahead of time, with its operations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from flax_vae.ops import release_compiler_memory
from flax_vae.train.devices.count_flops import TracedProgram


class StepOperations(NamedTuple):
    """Floating-point operations of one step on all devices, without what rematerialisation computes again.

    Attributes:
      active: With an active discriminator, if there is one.
      inactive: Before the discriminator takes part.
    """

    active: int
    inactive: int


def mean_operations(steps: Sequence[StepOperations | None]) -> StepOperations | None:
    """Returns the mean of the operations of some steps, or None if they are unknown.

    Args:
      steps: Operations of each step, or None where they are unknown.
    """
    known = [operations for operations in steps if operations is not None]
    if not known or len(known) < len(steps):
        return None
    return StepOperations(*(sum(numbers) // len(known) for numbers in zip(*known, strict=True)))


class CompiledStep:
    """Compiles at the first call, once; a batch of another shape later is an error, not a recompilation.

    Attributes:
      operations: Operations of one call; None before the first one.
    """

    def __init__(
        self, jit: Callable[[Any], Any], options: dict[str, Any] | None, counted: Callable[..., Any] | None = None
    ):
        """Stores the arguments; nothing is compiled yet.

        Args:
          jit: Function that takes a state and returns the function to lower.
          options: Compiler options.
          counted: Function that is traced in place of that one for counting; None if that one can be traced.
        """
        self._jit, self._options = jit, options
        self._counted, self._function = counted, None
        self._compiled: Any = None
        self.operations: StepOperations | None = None

    def lower(self, state: Any, batch: Any, constants: Any) -> Any:
        """Returns the lowered program for arrays, or for their shapes, before compilation."""
        return self._jitted(state).lower(state, batch, constants)

    def program(self, state: Any, batch: Any, constants: Any) -> TracedProgram:
        """Returns the program for counting, which is not traced again after `lower`, except for `counted`."""
        return TracedProgram(self._counted or self._jitted(state), state, batch, constants)

    def count(self, state: Any, batch: Any, constants: Any) -> StepOperations:
        """Returns the operations of one call; for the arguments see `program`."""
        program = self.program(state, batch, constants)
        active, inactive = (program.operations(recomputed=False, longest=longest) for longest in (True, False))
        return StepOperations(active, inactive)

    def __call__(self, state: Any, batch: jax.Array, constants: Any) -> Any:
        """Runs `(state, batch, constants) -> (state, scores)`."""
        if self._compiled is None:
            lowered = self.lower(state, batch, constants)
            self.operations = self.count(state, batch, constants)
            self._compiled = lowered.compile(compiler_options=self._options)
            release_compiler_memory()
        return self._compiled(state, batch, constants)

    def _jitted(self, state: Any) -> Any:
        if self._function is None:
            self._function = self._jit(state)
        return self._function
