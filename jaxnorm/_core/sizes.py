"""A choice by the size of an array, as it is when a program is lowered: with all that it was mapped over by then."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Array

from jaxnorm._core.numerics import at_most


def by_size(x: Array, limit: int, small: Callable[..., Any], large: Callable[..., Any], *args: Any) -> Any:
    """One function or the other of the arguments: the first if all of `x` has so many bytes at most.

    Under `vmap` the size of an example says nothing of that of the batch, and nobody knows it before. XLA removes the
    other branch, as the choice is a constant.
    """
    return lax.cond(_is_small_p.bind(x, limit=limit), small, large, *args)


def _is_small(x: Any, limit: int) -> bool:
    return all(isinstance(n, int) for n in x.shape) and at_most(x.size * x.dtype.itemsize, limit)


def _lower(context: Any, x: Any, *, limit: int) -> Any:
    choice = jnp.bool_(_is_small(context.avals_in[0], limit))
    return mlir.lower_fun(lambda x: choice, multiple_results=False)(context, x)


_is_small_p = Primitive("jaxnorm_is_small")
_is_small_p.def_impl(lambda x, limit: jnp.bool_(_is_small(x, limit)))
# Whatever x is sharded or varies over, the choice is one.
_is_small_p.def_abstract_eval(lambda x, limit: jax.make_jaxpr(lambda: jnp.bool_(True))().out_avals[0])
mlir.register_lowering(_is_small_p, _lower)
batching.primitive_batchers[_is_small_p] = lambda args, axes, limit: (_is_small_p.bind(*args, limit=limit), None)
