"""Arithmetic of tangents, None for one that is known to be zero: what it would multiply is never computed or kept."""

from functools import reduce
from operator import add
from typing import Any

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
