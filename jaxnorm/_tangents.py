"""Tangents that are known to be zero, as None: what they would multiply is never computed or kept."""

from functools import reduce
from operator import add
from typing import Any

from jax.custom_derivatives import SymbolicZero


def moving(tangent):
    """The tangent, or None where it is zero by construction."""
    return None if isinstance(tangent, SymbolicZero) else tangent


def times(a, t):
    """The product a · t."""
    return None if t is None else a * t


def plus(*terms) -> Any:
    """The sum of the terms."""
    present = [t for t in terms if t is not None]
    return reduce(add, present) if present else None
