"""Linear functions with a hand-written transpose, differentiable in both modes and any number of times.

`jax.custom_vjp` refuses forward mode.  Here a derivative rule is `jax.custom_jvp`, whose tangents are computed by
`linear`: forward mode runs the function itself, reverse mode the transpose that was written for it.
`jax.custom_derivatives.linear_call` does that too, but has neither a batching rule nor derivatives by its residuals.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec
from jaxtyping import Array

Arrays = tuple[Array, ...]

# Takes residuals, and the arguments in which it is linear.
LinearFunction = Callable[[Arrays, Arrays], Arrays]


def linear(
    function: LinearFunction,
    transpose: LinearFunction,
    residuals: Sequence[Array],
    arguments: Sequence[Any],
    *,
    like: Sequence[Any],
) -> Arrays:
    """Returns `function(residuals, arguments)`, of which `transpose` is the transpose in the arguments.

    Neither function may close over a traced array.

    Args:
      function: Takes residuals and arguments, and returns a tuple; linear in the arguments.
      transpose: Takes residuals and cotangents of the result, and returns cotangents of all arguments, in their dtypes.
      residuals: Arrays that the function need not be linear in.
      arguments: Arrays, of which some may be symbolic zeros, as the rules of `jax.custom_jvp` receive them.
      like: Arrays or abstract arrays with the shapes and dtypes of the result.
    """
    zeros = tuple(_abstract(a.aval) if isinstance(a, SymbolicZero | ad.Zero) else None for a in arguments)

    def of_present(residuals: Arrays, present: Arrays) -> Arrays:
        rest = iter(present)
        return function(
            residuals, tuple(next(rest) if zero is None else jnp.zeros(zero.shape, zero.dtype) for zero in zeros)
        )

    def to_present(residuals: Arrays, cotangents: Arrays) -> Arrays:
        results = transpose(residuals, cotangents)
        return tuple(result for result, zero in zip(results, zeros, strict=True) if zero is None)

    missing = any(zero is not None for zero in zeros)
    present = [a for a, zero in zip(arguments, zeros, strict=True) if zero is None]
    out = _linear_p.bind(
        *vary_together(*residuals, *present),
        function=of_present if missing else function,
        transpose=to_present if missing else transpose,
        count=len(residuals),
        out=tuple(map(_abstract, like)),
    )
    return tuple(out)


def bilinear(
    function: Callable[[Array, Array], Array],
    by_first: Callable[[Array, Array], Array],
    by_second: Callable[[Array, Array], Array],
) -> Callable[[Array, Array], Array]:
    """Returns a function that is linear in each of its two arguments, with hand-written transposes.

    Derivatives of every order are calls of these three functions.  None of them may close over a traced array.

    Args:
      function: Takes `x` and `y`, and returns `z`.
      by_first: Takes `y` and a cotangent of `z`, and returns a cotangent of `x`.
      by_second: Takes `x` and a cotangent of `z`, and returns a cotangent of `y`.
    """
    # One trilinear form, sum(z(x, y) * g), of which each of the three is the gradient by one of x, y and g.
    of_g = _with_rule(function, lambda y, g: of_x(y, g), lambda x, g: of_y(x, g))
    of_x = _with_rule(by_first, lambda g, x: of_y(x, g), lambda y, x: of_g(x, y))
    of_y = _with_rule(by_second, lambda g, y: of_x(y, g), lambda x, y: of_g(x, y))
    return of_g


def _with_rule(function: Callable, by_first: Callable, by_second: Callable) -> Callable[[Array, Array], Array]:
    with_rule = jax.custom_jvp(function)

    def rule(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
        x, y = primals
        d_x, d_y = tangents
        out, d_out = with_rule(x, y), []
        if not isinstance(d_x, SymbolicZero):
            of_x, back = lambda kept, d_x: (with_rule(*d_x, *kept),), lambda kept, g: (by_first(*kept, *g),)
            d_out += linear(of_x, back, (y,), (d_x,), like=(out,))
        if not isinstance(d_y, SymbolicZero):
            of_y, back = lambda kept, d_y: (with_rule(*kept, *d_y),), lambda kept, g: (by_second(*kept, *g),)
            d_out += linear(of_y, back, (x,), (d_y,), like=(out,))
        return out, sum(d_out[1:], d_out[0])

    with_rule.defjvp(rule, symbolic_zeros=True)
    return with_rule


def vary_together(*arrays: Array) -> Arrays:
    """Returns the arrays, marked in a `jax.shard_map` as varying over every axis of devices over which one does.

    The transpose sums over those axes.  `jax.numpy` does so for its own operations; primitives and the first carry of a
    scan need it.  Outside of a `jax.shard_map` the arrays are returned as they are.
    """
    own = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    union = frozenset().union(*own)
    return tuple(
        lax.pcast(array, tuple(sorted(union - axes, key=str)), to="varying") if union - axes else array
        for array, axes in zip(arrays, own, strict=True)
    )


def varying_like(struct: Any, *arrays: Array) -> Any:
    """Returns a shape and dtype for `jax.linear_transpose`, or zeros of them, if an array varies in a `jax.shard_map`.

    The transpose by an argument that does not vary would be summed over the devices.
    """
    if not any(jax.typeof(array).manual_axis_type.varying for array in arrays):
        return struct
    return vary_together(jnp.zeros(struct.shape, struct.dtype), *arrays)[0]


# ------------------------------------------------------------------------------------------------- the primitive


def _abstract(array: Any) -> ShapedArray:
    return ShapedArray(array.shape, array.dtype)


def _types(*arrays: ShapedArray, out: tuple[ShapedArray, ...], **_: Any) -> Sequence[ShapedArray]:
    """Returns the types of the results, which vary as all arrays do; see `vary_together`."""
    one = next((array for array in arrays if array.manual_axis_type.varying), None)
    if one is None:
        return out
    return [
        ShapedArray(
            each.shape,
            each.dtype,
            sharding=one.sharding.update(spec=PartitionSpec(*[None] * len(each.shape))),
            manual_axis_type=one.manual_axis_type,
        )
        for each in out
    ]


def _evaluate(*arrays: Array, function: LinearFunction, count: int, **_: Any) -> Sequence[Array]:
    return function(arrays[:count], arrays[count:])


def _jvp(
    primals: Arrays,
    tangents: Sequence[Any],
    *,
    function: LinearFunction,
    transpose: LinearFunction,
    count: int,
    out: tuple[ShapedArray, ...],
) -> tuple[Sequence[Array], Sequence[Array]]:
    residuals, arguments = primals[:count], primals[count:]
    parts = []
    moving = [i for i in range(count) if not isinstance(tangents[i], ad.Zero)]
    if moving:

        def of_moving(*moved: Array) -> Sequence[Array]:
            new = dict(zip(moving, moved, strict=True))
            return function(tuple(new.get(i, residual) for i, residual in enumerate(residuals)), arguments)

        parts.append(jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])[1])
    if not all(isinstance(tangent, ad.Zero) for tangent in tangents[count:]):
        parts.append(linear(function, transpose, residuals, tangents[count:], like=out))
    d_out = parts[0] if len(parts) == 1 else [x + y for x, y in zip(*parts, strict=True)]
    return linear(function, transpose, residuals, arguments, like=out), list(d_out)


def _transpose(
    cotangents: Sequence[Any],
    *arrays: Any,
    function: LinearFunction,
    transpose: LinearFunction,
    count: int,
    out: tuple[ShapedArray, ...],
) -> list[Any]:
    arguments = arrays[count:]
    like = [argument.aval if ad.is_undefined_primal(argument) else argument for argument in arguments]
    given = [jnp.zeros(o.shape, o.dtype) if isinstance(c, ad.Zero) else c for c, o in zip(cotangents, out, strict=True)]
    results = zip(arguments, linear(transpose, function, arrays[:count], given, like=like), strict=True)
    return [None] * count + [result if ad.is_undefined_primal(argument) else None for argument, result in results]


def _batch(
    arrays: Arrays,
    axes: Sequence[int | None],
    *,
    function: LinearFunction,
    transpose: LinearFunction,
    count: int,
    out: tuple[ShapedArray, ...],
) -> tuple[Arrays, Sequence[int]]:
    of_residuals, of_arguments = tuple(axes[:count]), tuple(axes[count:])

    def to_arguments(residuals: Arrays, cotangents: Arrays) -> Arrays:
        results = jax.vmap(transpose, (of_residuals, 0))(residuals, cotangents)
        return tuple(
            jnp.sum(result, 0) if axis is None else jnp.moveaxis(result, 0, axis)
            for result, axis in zip(results, of_arguments, strict=True)
        )

    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    like = [ShapedArray((size, *one.shape), one.dtype) for one in out]
    of_batch = jax.vmap(function, (of_residuals, of_arguments))
    return linear(of_batch, to_arguments, arrays[:count], arrays[count:], like=like), [0] * len(like)


_linear_p = Primitive("linear")
_linear_p.multiple_results = True
_linear_p.def_impl(_evaluate)
_linear_p.def_abstract_eval(_types)
ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_evaluate, multiple_results=True))
