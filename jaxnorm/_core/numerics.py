"""Small arithmetic: in which dtype, about which mean, of what counts, and without losing digits."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

MaybeArray = Array | None


def wide_dtype(x: Any) -> Any:
    """The dtype of arithmetic on `x`, or on what has its dtype: float32 at least."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return x.dtype
    return jnp.dtype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def real_dtype(x: Array) -> Any:
    """The dtype of variances and counts of `x`."""
    return jnp.finfo(wide_dtype(x)).dtype


def widest(*dtypes: Any) -> Any:
    """The widest of several dtypes of one kind."""
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def dtype_of_sum(x: Array, residual: Array) -> Any:
    """The dtype that holds both: also where JAX is strict, as a float32 stream beside bfloat16 data is meant."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(x.dtype, residual.dtype)


def at_most(size: Any, limit: int) -> bool:
    """Whether a size is known to be within a limit: one of an exported program may be a symbol."""
    return isinstance(size, int) and size <= limit


def real_product(a: Array, b: Array) -> Array:
    """Re(ā b), elementwise: a b for real numbers."""
    return (a.conj() * b).real if jnp.iscomplexobj(a) else a * b


def reciprocal(n: Array) -> Array:
    """1/n, and 1 where n = 0."""
    return 1 / jnp.where(n == 0, 1, n)


def nan_if_infinite(v: Array) -> Array:
    """A sum or mean of squares, and NaN where it is ∞: what is divided by it is not to be 0."""
    return jnp.where(v < jnp.inf, v, jnp.nan)


def with_offset(scale: Array, offset: float, dtype: Any) -> Array:
    """The factor γ + offset in the dtype of arithmetic, so that a γ near 0 keeps its digits as a parameter."""
    scale = scale.astype(dtype)
    # Not + 0: compilers keep that, as it turns −0 into 0.
    return scale + offset if offset else scale


def deviation(x: Array, pivot: MaybeArray = None, delta: MaybeArray = None) -> Array:
    """(x − pivot) − delta: in this order the digits of x − μ survive a large mean."""
    d = x.astype(wide_dtype(x))
    d = d if pivot is None else d - pivot
    return d if delta is None else d - delta


def included(where: Array) -> Array:
    """The positions that count: those of positive weight."""
    return where if where.dtype == jnp.bool_ else where > 0


def masked(v: Array, where: MaybeArray) -> Array:
    """`v` where it counts, and 0 elsewhere: a weight of 0 would leave 0 · NaN, forward or in the transpose."""
    return v if where is None else jnp.where(included(where), v, 0)


def weighted(v: Array, where: MaybeArray) -> Array:
    """`v` times its weights. A mask has none: what it excludes is 0 already (`masked`)."""
    return v if where is None or where.dtype == jnp.bool_ else v * where.astype(v.dtype)


def narrow(y: Array, where: MaybeArray, dtype: Any) -> Array:
    """`y` in a dtype, finite where padding is: that may hold the largest float."""
    if where is not None and not jnp.iscomplexobj(y):
        most = jnp.finfo(dtype).max.astype(y.dtype)
        y = jnp.where(included(where), y, jnp.clip(y, -most, most))
    return y.astype(dtype)


def add_with_residual(a: Array, b: Array, residual: Array) -> tuple[Array, Array]:
    """a + b + residual as two numbers, the second without derivative. The sum of the first two is exact (Knuth)."""
    total = a + b
    part = total - a
    residual += lax.stop_gradient((a - (total - part)) + (b - part))
    near = total + residual
    left = lax.stop_gradient(residual - (near - total))
    # The residual of infinity is no number.
    return near, jnp.where(jnp.isfinite(near), left, 0)
