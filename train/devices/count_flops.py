"""Counts the floating-point operations of a traced program: convolutions and matrix products, nearly all of them."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval

from flax_vae.convert.errors import ArgumentError

# Names that programs give to a platform of devices.
_PLATFORMS = {"gpu": ("cuda", "rocm")}


class TracedProgram:
    """A function as JAX has traced it, whose operations are counted on all devices; a multiply-add counts as two.

    Counts the body of a loop for every iteration, and calls of a device's library, which compilers' own counts do not.
    Where platforms compute a result differently, it counts the way of a platform, or the longest, which is the one
    without shortcuts.
    """

    def __init__(self, function: Any, *args: Any):
        """Traces, which takes no time if JAX has traced the function with these shapes before, to compile it.

        Args:
          function: Function that JAX can trace.
          *args: Arguments, or their shapes.
        """
        jaxpr = jax.make_jaxpr(function)(*args).jaxpr
        # Unused results are not computed; of a whole backward pass, perhaps only one kernel's gradient is needed.
        self._jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
        self._traced: dict[int, Jaxpr] = {}

    def operations(self, *, recomputed: bool = True, longest: bool = True, platform: str | None = None) -> int:
        """Returns the operations of one call.

        Args:
          recomputed: Whether what rematerialisation computes again counts again.
          longest: Whether a condition counts as the longest of its branches, which is the one with an active
            discriminator, or as the shortest.
          platform: Platform whose way of computing is counted, as devices name it; None counts the longest way.

        Raises:
          ValueError: If there is a loop of unknown length.
        """
        return _Counter(recomputed, longest, _PLATFORMS.get(platform or "", (platform,)), self._traced).of(self._jaxpr)


@dataclass(frozen=True)
class _Counter:
    """Counts by the rules of `TracedProgram.operations`.

    Attributes:
      recomputed: See there.
      longest: See there.
      platforms: Names of the platform, of which programs know one at most.
      traced: Functions of `linear` equations that were traced, by the equation's `id`.
    """

    recomputed: bool
    longest: bool
    platforms: tuple[str | None, ...]
    traced: dict[int, Jaxpr]

    def of(self, jaxpr: Jaxpr) -> int:
        return sum(self._one(equation) for equation in jaxpr.eqns)

    def _one(self, equation: Any) -> int:
        # JAX names what a backward pass computes again.
        if not self.recomputed and "rematted_computation" in str(equation.source_info.name_stack):
            return 0
        rule = {
            "dot_general": _product,
            "conv_general_dilated": _convolution,
            "scan": self._scan,
            "cond": self._cond,
            "while": self._while,
            "shard_map": self._shard_map,
            "linear": self._linear,
        }.get(equation.primitive.name, self._inside)
        return rule(equation)

    def _scan(self, equation: Any) -> int:
        return equation.params["length"] * self.of(equation.params["jaxpr"].jaxpr)

    def _cond(self, equation: Any) -> int:
        branches = [branch.jaxpr for branch in equation.params["branches"]]
        ways = equation.params.get("branches_platforms")
        if ways is not None and self.platforms != (None,):
            own = [way is not None and any(name in way for name in self.platforms) for way in ways]
            return self.of(branches[own.index(True) if True in own else ways.index(None)])
        choose = max if self.longest or ways is not None else min
        return choose(map(self.of, branches))

    def _while(self, equation: Any) -> int:
        if self.of(equation.params["body_jaxpr"].jaxpr):
            raise ArgumentError("the operations of a while loop with products in it cannot be counted; use a scan")
        return 0

    def _shard_map(self, equation: Any) -> int:
        """Returns the operations of all devices; each has a copy of the program."""
        return equation.params["mesh"].size * self._inside(equation)

    def _linear(self, equation: Any) -> int:
        """Returns the operations of a function of `flax_vae.ops.linear_maps`, which JAX traces when it lowers it."""
        if id(equation) not in self.traced:
            run = partial(equation.primitive.impl, **equation.params)
            # Without the axes of devices over which they vary in a shard_map, which are unknown out here.
            shapes = [jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype) for variable in equation.invars]
            self.traced[id(equation)] = jax.make_jaxpr(run)(*shapes).jaxpr
        return self.of(self.traced[id(equation)])

    def _inside(self, equation: Any) -> int:
        """Returns the operations of the function that a call calls."""
        values = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, (Jaxpr, ClosedJaxpr)))
        inner = (value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in values)
        return sum(self.of(jaxpr) for jaxpr in inner if isinstance(jaxpr, Jaxpr))


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval
    outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * equation.outvars[0].aval.size * kernel.size // outputs // _holes(equation)


def _holes(equation: Any) -> int:
    """Returns how many positions of a dilated input share one value; the others are zeros and are not computed."""
    return math.prod(equation.params["lhs_dilation"])
