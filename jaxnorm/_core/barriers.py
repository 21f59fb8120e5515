"""Barriers tell compilers to keep a computation as it is written. They change no value.

XLA for CPUs reduces in kernels of one result each. A full-size value that two of them want, x − μ or x in a wider
dtype, is written to memory and read again, which takes longer than to compute it twice. So each of them gets a copy
that the compiler takes for another value (`barrier_copy`).

The two operations here are linear maps of their own, as JAX has no public function with a transpose that one may give.
"""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from jaxnorm._core.numerics import wide_dtype
from jaxnorm._core.portable import is_portable


class Copy:
    """All readers that get a copy of their own. Its number is how many `optimization_barrier`s the copy is behind.

    The compiler merges equal copies of one value. So whoever reads the same value in one program has a number of its
    own, and a number may come again where the values differ: the first three below are of a sum, of a mean, and of x.
    (The transpose of `sum_as` numbers copies of a cotangent, which nobody else copies.)
    """

    PARTIAL_SUM = 1  # of a sum in stages, read by the next stage alone
    PIVOT = 1  # of a row: else it is computed anew, and rounded differently, for each that subtracts it
    SQUARES = 1  # x − p for the variance, beside x − p for the mean
    VALUE = 2  # x − μ for y
    STATISTICS_TANGENT = 3  # x − p for the tangent of a variance
    Y_BY_SLOPE = 4  # x − μ in the tangent of y: times that of scale · r, or of r
    Y_BY_SCALE = 5  # the same, times that of a scale along the reduced axes
    Y_BY_X = 6  # scale and r, times that of x
    Y_BY_MEAN = 7  # scale, times that of the mean


def by_platform(*args: Any, portable: Callable[..., Any] | None = None, **branches: Callable[..., Any]) -> Any:
    """The result of the branch for the platform that a program is compiled for, or of the default one.

    In a program for a converter it is the `portable` one, which is the default if none is given.
    """
    if is_portable():
        return (portable or branches["default"])(*args)
    return lax.platform_dependent(*args, **branches)


def barrier_copy(copy: int, value: Array) -> Array:
    """The value, which compilers for CPUs take for another one than its other copies."""
    return value if is_portable() else _copy_p.bind(value, copy=copy)


def barrier_copies(copy: int, x: Array, *vectors: Array | None) -> tuple[Any, ...]:
    """Copies of what a deviation is computed from, for a reader that shares it with no other."""
    # It is the conversion of x that would be shared and written down: a plain read of x is not.
    x = x if x.dtype == wide_dtype(x) else barrier_copy(copy, x)
    return x, *(v if v is None else barrier_copy(copy, v) for v in vectors)


def _barriers(value: Array, *, copy: int) -> Array:
    for _ in range(copy):
        value = lax.optimization_barrier(value)
    return value


_copy_p = Primitive("jaxnorm_copy")
_copy_p.def_impl(lambda value, copy: value)
_copy_p.def_abstract_eval(lambda value, copy: value)
mlir.register_lowering(_copy_p, lambda context, value, copy: [value])
mlir.register_lowering(_copy_p, mlir.lower_fun(_barriers, multiple_results=False), platform="cpu")
ad.deflinear2(_copy_p, lambda cotangent, value, copy: [barrier_copy(copy, cotangent)])
batching.primitive_batchers[_copy_p] = lambda values, axes, copy: (barrier_copy(copy, *values), *axes)


def after(dependency: Array, value: Array) -> Array:
    """The value, which compilers for CPUs may not compute before the dependency.

    In a loop, x would else be converted to float32 once for all its trips, and written down: a copy of all data.
    """

    def barrier(dependency: Array, value: Array) -> Array:
        return lax.optimization_barrier((dependency, value))[1]

    return by_platform(dependency, value, cpu=barrier, default=lambda dependency, value: value)


def sum_as(dtype: Any, *terms: Array) -> Array:
    """The sum of terms of one shape and dtype, in another dtype; the transpose converts the cotangent for each anew.

    JAX would convert it once for all of them, for XLA to write down.
    """
    if len(terms) == 1 or terms[0].dtype == dtype:
        return _sum(*terms, dtype=dtype)
    return _sum_p.bind(*terms, dtype=jnp.dtype(dtype))


def _sum(*terms: Array, dtype: Any) -> Array:
    return reduce(add, terms).astype(dtype)


def _transpose(cotangent: Any, *terms: Any, dtype: Any) -> list[Any]:
    each = enumerate(terms, start=1)
    return [barrier_copy(i, cotangent).astype(t.aval.dtype) if ad.is_undefined_primal(t) else None for i, t in each]


def batch_in_front(args: Any, axes: Any) -> list[Array]:
    """Arguments of a batching rule, each with the mapped axis as its first."""
    size = next(v.shape[a] for v, a in zip(args, axes, strict=True) if a is not None)
    return [
        jnp.broadcast_to(v, (size, *v.shape)) if a is None else jnp.moveaxis(v, a, 0)
        for v, a in zip(args, axes, strict=True)
    ]


def _batch(terms: Any, axes: Any, *, dtype: Any) -> tuple[Array, int]:
    return _sum_p.bind(*batch_in_front(terms, axes), dtype=dtype), 0


_sum_p = Primitive("jaxnorm_sum")
_sum_p.def_impl(jax.jit(_sum, static_argnames="dtype"))
_sum_p.def_abstract_eval(lambda *terms, dtype: terms[0].update(dtype=dtype, weak_type=False))
mlir.register_lowering(_sum_p, mlir.lower_fun(_sum, multiple_results=False))
ad.deflinear2(_sum_p, _transpose)
batching.primitive_batchers[_sum_p] = _batch
