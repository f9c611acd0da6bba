"""Counts the floating-point operations of a traced program: convolutions and matrix products, nearly all of them."""

import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval

from flax_vae.convert.errors import ArgumentError


def count_operations(function: Any, *args: Any) -> int:
    """Returns the operations of one call; a multiply-add counts as two.

    Counts the body of a loop for every iteration, which compilers' own counts do not, and recomputation in the backward
    pass again.  Of several branches it takes the longest, which is the one with an active discriminator.

    Args:
      function: Function that JAX can trace.
      *args: Arguments, or their shapes.

    Raises:
      ValueError: If there is a loop of unknown length.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    # Unused results are not computed; of a whole backward pass, perhaps only one kernel's gradient is needed.
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(used)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_OWN.get(equation.primitive.name, _inside)(equation) for equation in jaxpr.eqns)


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


def _scan(equation: Any) -> int:
    return equation.params["length"] * _count(equation.params["jaxpr"].jaxpr)


def _cond(equation: Any) -> int:
    return max(_count(branch.jaxpr) for branch in equation.params["branches"])


def _while(equation: Any) -> int:
    if _count(equation.params["body_jaxpr"].jaxpr):
        raise ArgumentError("the operations of a while loop with products in it cannot be counted; use a scan")
    return 0


def _inside(equation: Any) -> int:
    """Returns the operations of the function that a call calls."""
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, (Jaxpr, ClosedJaxpr)))
    inner = (value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in values)
    return sum(_count(jaxpr) for jaxpr in inner if isinstance(jaxpr, Jaxpr))


_OWN = {
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "scan": _scan,
    "cond": _cond,
    "while": _while,
}
