"""What compilers are told so that they keep a computation as it is written. It changes no value.

XLA for CPUs reduces in kernels of one result each. A full-size value that two of them want, x − μ or x in a wider
dtype, is written to memory and read again, which takes longer than to compute it twice.

Both primitives here are linear maps that public functions don't give: JAX has none with a transpose of one's own.
"""

from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def by_platform(*args, **branches):
    """The branch for the platform that a program is compiled for, or the default one."""
    return lax.platform_dependent(*args, **branches)


def own(copy, value):
    """The value as copy number 1, 2, … of it, which CPU compilers take for others than the rest of its copies."""
    return _own_p.bind(value, copy=copy)


def _barriers(value, *, copy):
    # Equal ones would be merged: each copy is behind a number of its own.
    for _ in range(copy):
        value = lax.optimization_barrier(value)
    return value


_own_p = Primitive("jaxnorm_own")
_own_p.def_impl(lambda value, copy: value)
_own_p.def_abstract_eval(lambda value, copy: value)
mlir.register_lowering(_own_p, lambda context, value, copy: [value])
mlir.register_lowering(_own_p, mlir.lower_fun(_barriers, multiple_results=False), platform="cpu")
ad.deflinear2(_own_p, lambda cotangent, value, copy: [own(copy, cotangent)])
batching.primitive_batchers[_own_p] = lambda values, axes, copy: (own(copy, *values), *axes)


def after(moment, value):
    """The value, for CPU compilers not before another one: a loop does not convert it once for all its trips."""

    def barrier(moment, value):
        return lax.optimization_barrier((moment, value))[1]

    return by_platform(moment, value, cpu=barrier, default=lambda moment, value: value)


def total(dtype, *terms):
    """The sum of terms of one shape and dtype, in another dtype; the transpose converts the cotangent for each anew.

    JAX would convert it once for all of them, for XLA to write down.
    """
    if len(terms) == 1 or terms[0].dtype == dtype:
        return _total(*terms, dtype=dtype)
    return _total_p.bind(*terms, dtype=jnp.dtype(dtype))


def _total(*terms, dtype):
    return reduce(add, terms).astype(dtype)


def _transpose(cotangent, *terms, dtype):
    each = enumerate(terms, start=1)
    return [own(i, cotangent).astype(t.aval.dtype) if ad.is_undefined_primal(t) else None for i, t in each]


def _batch(terms, axes, *, dtype):
    size = next(v.shape[a] for v, a in zip(terms, axes, strict=True) if a is not None)
    in_front = (
        jnp.broadcast_to(v, (size, *v.shape)) if a is None else jnp.moveaxis(v, a, 0)
        for v, a in zip(terms, axes, strict=True)
    )
    return _total_p.bind(*in_front, dtype=dtype), 0


_total_p = Primitive("jaxnorm_total")
_total_p.def_impl(jax.jit(_total, static_argnames="dtype"))
_total_p.def_abstract_eval(lambda *terms, dtype: terms[0].update(dtype=dtype, weak_type=False))
mlir.register_lowering(_total_p, mlir.lower_fun(_total, multiple_results=False))
ad.deflinear2(_total_p, _transpose)
batching.primitive_batchers[_total_p] = _batch
