"""Arithmetic of tangents, None for one that is known to be zero: what it would multiply is never computed or kept."""

from collections.abc import Callable, Hashable
from functools import lru_cache, partial, reduce
from operator import add
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero


def nonzero_tangent(tangent: Any) -> Any:
    """The tangent, or None where it is zero by construction."""
    return None if isinstance(tangent, SymbolicZero) else tangent


def times(a: Any, t: Any) -> Any:
    """The product a · t of a number and a tangent."""
    return None if t is None else a * t


def plus(*terms: Any) -> Any:
    """The sum of the tangents that are not zero."""
    present = [t for t in terms if t is not None]
    return reduce(add, present) if present else None


@lru_cache(maxsize=1024)
def recomputing(function: Callable[..., Any], *static: Hashable) -> Callable[..., Any]:
    """A function, of tangents or of data, whose transpose keeps its arguments alone and computes all else again.

    Equal norms share one such function: JAX traces it and its transpose once for all of them, and lowers a program in
    which it stands once. A barrier between the two passes (`prevent_cse`) would keep compilers from fusing, and within
    one program there is nothing to gain by it.
    """
    return jax.checkpoint(jax.jit(partial(function, *static)), prevent_cse=False)
