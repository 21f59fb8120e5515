"""What compilers are told so that they keep a computation as it is written. It changes no value.

XLA for CPUs reduces in kernels of one result each. A full-size value that two of them want, x − μ or x in a wider
dtype, is written to memory and read again, which takes longer than to compute it twice.
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


def own(copy, *values):
    """The values as copy number 1, 2, … of them, which CPU compilers take for others than the rest of the copies."""

    def barriers(*values):
        # One barrier each: a common one would mix what varies over a mesh with what does not. Equal ones are merged.
        for _ in range(copy):
            values = tuple(map(lax.optimization_barrier, values))
        return values

    return by_platform(*values, cpu=barriers, default=lambda *values: values) if values else values


def after(moment, value):
    """The value, for CPU compilers not before another one: a loop does not convert it once for all its trips."""

    def barrier(moment, value):
        return lax.optimization_barrier((moment, value))[1]

    return by_platform(moment, value, cpu=barrier, default=lambda moment, value: value)


def total(dtype, *terms):
    """The sum of terms of one shape and dtype, in another dtype; the transpose converts the cotangent for each anew.

    JAX would convert it once for all of them, for XLA to write down. It has no public function for a linear map with a
    given transpose, hence a primitive.
    """
    if len(terms) == 1 or terms[0].dtype == dtype:
        return _total(*terms, dtype=dtype)
    return _total_p.bind(*terms, dtype=jnp.dtype(dtype))


def _total(*terms, dtype):
    return reduce(add, terms).astype(dtype)


def _transpose(cotangent, *terms, dtype):
    each = enumerate(terms, start=1)
    return [own(i, cotangent)[0].astype(t.aval.dtype) if ad.is_undefined_primal(t) else None for i, t in each]


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
