"""Layer and RMS norm of rows: the value, its derivative and the transpose of that, each an operation with kernels.

x has its features last. Scale, bias and ε have the leading axes of `x` that they vary along, which come first: none, or
those of the examples where each has a scale of its own. With r = 1/√(var + ε) and x̂ = (x − μ) r:

    y  = γ x̂ + β
    dy = γ r (dx − ⟨dx⟩ − x̂ ⟨x̂ dx⟩) + x̂ dγ + dβ
    dx = r (γ g − ⟨γ g⟩ − x̂ ⟨γ g x̂⟩)        dγ = Σ x̂ g        dβ = Σ g        g the cotangent of y

RMS norm has no ⟨dx⟩ and no ⟨γ g⟩. The formulas are what every platform can do, and what further derivatives are of; a
platform with a kernel has its own value and transpose. All of them keep x, γ and ε, and compute x̂ anew.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxnorm._core.barriers import Copy, barrier_copy
from jaxnorm._core.kernels import platforms
from jaxnorm._core.kernels.arithmetic import inverse_root
from jaxnorm._core.kernels.operation import operation, transposed
from jaxnorm._core.numerics import with_offset
from jaxnorm._core.tangents import nonzero_tangent


class Rows(NamedTuple):
    """A norm of rows, as far as it is known when tracing."""

    centered: bool
    dtype: Any
    """That of y."""
    named: bool
    """Whether the kernel was asked for by name: where there is none, that is an error."""
    scaled: bool = True
    biased: bool = True
    scale_offset: float = 0.0

    def factor(self, scale: Array | None) -> Any:
        """The factor of x̂: γ as it is, which a kernel widens, or with the offset in float32."""
        offset = self.scale_offset
        return with_offset(scale, offset, jnp.float32) if scale is not None and offset else scale

    def unpack(self, args: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
        """The arguments, None for a scale or bias that is not there."""
        x, *vectors, epsilon = args
        scale = vectors.pop(0) if self.scaled else None
        return x, scale, vectors.pop(0) if vectors else None, epsilon


def _per_row(v: Array | None, x: Array) -> Any:
    """A vector or a number of a segment, in the dimensions of `x`."""
    if v is None:
        return None
    *lead, last = v.shape
    return v.astype(jnp.float32).reshape(*lead, *[1] * (x.ndim - v.ndim), last)


def _mean(v: Array) -> Array:
    return v.mean(-1, keepdims=True)


def _moments(rows: Rows, x: Array, epsilon: Array) -> tuple[Array | None, Array | None, Array]:
    """The mean as pivot and δ, and r."""
    d, pivot, delta = x.astype(jnp.float32), None, None
    if rows.centered:
        # One mean for all that is computed from it: XLA for CPUs would take it anew, rounded differently, for each.
        pivot = barrier_copy(Copy.PIVOT, _mean(d))
        d = d - pivot
        delta = _mean(d)
        d = d - delta
    v = _mean(d * d) + _per_row(epsilon, x)
    return pivot, delta, inverse_root(v)


def _normal(x: Array, pivot: Array | None, delta: Array | None, r: Array) -> Array:
    """x̂."""
    d = x.astype(jnp.float32)
    return (d if pivot is None or delta is None else (d - pivot) - delta) * r


def _value(*args: Array, rows: Rows) -> Array:
    """y of rows, by the formula."""
    x, scale, bias, epsilon = rows.unpack(args)
    y = _normal(x, *_moments(rows, x, epsilon))
    y = y if scale is None else y * _per_row(rows.factor(scale), x)
    return (y if bias is None else y + _per_row(bias, x)).astype(rows.dtype)


def _projection(rows: Rows, normal: Array, v: Array) -> tuple[Array, ...]:
    """⟨x̂ v⟩, and ⟨v⟩ where the mean counts."""
    return (_mean(normal * v), _mean(v)) if rows.centered else (_mean(normal * v),)


def _projected(normal: Array, r: Array, v: Array, slope: Array, mean: Array | None = None) -> Array:
    """r (v − ⟨v⟩ − x̂ ⟨x̂ v⟩): the derivative of x̂, which is symmetric."""
    off = normal * slope
    return r * (v - off if mean is None else v - off - mean)


def _tangent(*args: Array, rows: Rows, nonzero: tuple[bool, ...]) -> Array:
    """dy, linear in those of dx, dγ and dβ that are not zero; they come last."""
    args, tangents = args[: len(args) - sum(nonzero)], iter(args[len(args) - sum(nonzero) :])
    x, scale, _, epsilon = rows.unpack(args)
    dx, dscale, dbias = (next(tangents) if m else None for m in nonzero)
    pivot, delta, r = _moments(rows, x, epsilon)
    normal = _normal(x, pivot, delta, r)
    dy = jnp.zeros(x.shape, jnp.float32)
    if dx is not None:
        dx = dx.astype(jnp.float32)
        dx = _projected(normal, r, dx, *_projection(rows, normal, dx))
        dy += dx if scale is None else dx * _per_row(rows.factor(scale), x)
    if dscale is not None:
        dy += normal * _per_row(dscale, x)
    return (dy if dbias is None else dy + _per_row(dbias, x)).astype(rows.dtype)


def _cotangent(*args: Array, rows: Rows, nonzero: tuple[bool, ...]) -> list[Array]:
    """dx, dγ and dβ of nonzero tangents, linear in the cotangent of y, which comes last; dγ and dβ in float32."""
    *primals, g = args
    x, scale, _, epsilon = rows.unpack(primals)
    weight = _per_row(rows.factor(scale), x)

    def scaled(g: Array) -> Array:
        return g if weight is None else g * weight

    g = g.astype(jnp.float32)
    moments = _moments(rows, x, epsilon)
    normal = _normal(x, *moments)
    dx = _projected(normal, moments[-1], scaled(g), *_projection(rows, normal, scaled(g))).astype(x.dtype)
    # Numbers of their own: else XLA for GPUs writes x̂ down, for the sums to read (12 passes instead of 8).
    normal = _normal(x, *lax.optimization_barrier(moments))
    rows_alike = tuple(range(epsilon.ndim - 1, x.ndim - 1))
    sums = [v.sum(rows_alike) for v, m in ((normal * g, nonzero[1]), (g, nonzero[2])) if m]
    return [dx, *sums] if nonzero[0] else sums


def _gradients(g: Array, *primals: Array, rows: Rows, nonzero: tuple[bool, ...]) -> list[Array]:
    return _cotangent_p.bind(*primals, g, rows=rows, nonzero=nonzero)


_value_p = operation("rows", _value, platforms.forward)
_tangent_p = operation("rows_tangent", _tangent)
_cotangent_p = operation("rows_cotangent", _cotangent, platforms.backward, several=True)
transposed(_tangent_p, _gradients)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def standardize_rows(rows: Rows, *args: Array) -> Array:
    """y of rows: x, the scale and the bias that there are, ε."""
    return _value_p.bind(*args, rows=rows)


@partial(standardize_rows.defjvp, symbolic_zeros=True)
def _standardize_rows_jvp(rows: Rows, primals: Any, tangents: Any) -> tuple[Array, Array]:
    y = standardize_rows(rows, *primals)
    *tangents, depsilon = map(nonzero_tangent, tangents)
    dx, dscale, dbias, _ = rows.unpack([*tangents, None])
    nonzero = tuple(t is not None for t in (dx, dscale, dbias))
    dy = None
    if any(nonzero):
        dy = _tangent_p.bind(*primals, *(t for t in (dx, dscale, dbias) if t is not None), rows=rows, nonzero=nonzero)
    if depsilon is not None:
        *args, epsilon = primals
        _, by_epsilon = jax.jvp(lambda epsilon: _value(*args, epsilon, rows=rows), (epsilon,), (depsilon,))
        dy = by_epsilon if dy is None else dy + by_epsilon
    return y, jnp.zeros_like(y) if dy is None else dy
