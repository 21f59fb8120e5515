"""Layer and RMS norm of rows: the value, its derivative and the transpose of that, each an operation with kernels.

x has its features last. Scale, bias and ε have the leading axes of `x` that they vary along, which come first: none, or
those of the examples where each has a scale of its own. With r = 1/√(var + ε) and x̂ = (x − μ) r:

    y  = γ x̂ + β
    dy = γ r (dx − ⟨dx⟩ − x̂ ⟨x̂ dx⟩) + x̂ dγ + dβ
    dx = r (γ g − ⟨γ g⟩ − x̂ ⟨γ g x̂⟩)        dγ = Σ x̂ g        dβ = Σ g        g the cotangent of y

RMS norm has no ⟨dx⟩ and no ⟨γ g⟩. With a residual, h = x + residual takes the place of x and is a result, too; its
cotangent is added to dx. The formulas are what every platform can do, and what further derivatives are of; a
platform with a kernel has its own value and transpose. All of them keep x or h, γ and ε, and compute x̂ anew.
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
from jaxnorm._core.kernels.arithmetic import add, inverse_root
from jaxnorm._core.kernels.operation import operation, transposed
from jaxnorm._core.numerics import with_offset
from jaxnorm._core.tangents import nonzero_tangent, plus


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
    added: bool = False
    """Whether h = x + residual is normalized, and a result after y."""

    def factor(self, scale: Array | None) -> Any:
        """The factor of x̂: γ as it is, which a kernel widens, or with the offset in float32."""
        offset = self.scale_offset
        return with_offset(scale, offset, jnp.float32) if scale is not None and offset else scale

    def split(self, args: Sequence[Any]) -> tuple[Any, Any, tuple[Any, ...]]:
        """The value's x, the residual that is added to it, or None, and all other arguments."""
        x, *others = args
        return x, others.pop(0) if self.added else None, tuple(others)

    def unpack(self, args: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
        """The x or h that is normalized, scale, bias and ε, None for a scale or bias that is not there."""
        x, *vectors, epsilon = args
        scale = vectors.pop(0) if self.scaled else None
        return x, scale, vectors.pop(0) if vectors else None, epsilon

    def cotangents(self, args: Sequence[Any]) -> tuple[Sequence[Any], Any, Any]:
        """The transpose's arguments: those that it keeps of the value, the cotangent of y, and that of h or None."""
        *primals, g = args
        return (primals[:-1], primals[-1], g) if self.added else (primals, g, None)


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


def _value(*args: Array, rows: Rows) -> list[Array]:
    """y of rows, by the formula; and h."""
    x, residual, others = rows.split(args)
    h = x if residual is None else add(x, residual)
    _, scale, bias, epsilon = rows.unpack((h, *others))
    y = _normal(h, *_moments(rows, h, epsilon))
    y = y if scale is None else y * _per_row(rows.factor(scale), h)
    y = (y if bias is None else y + _per_row(bias, h)).astype(rows.dtype)
    return [y] if residual is None else [y, h]


def _projection(rows: Rows, normal: Array, v: Array) -> tuple[Array, ...]:
    """⟨x̂ v⟩, and ⟨v⟩ where the mean counts."""
    return (_mean(normal * v), _mean(v)) if rows.centered else (_mean(normal * v),)


def _projected(normal: Array, r: Array, v: Array, slope: Array, mean: Array | None = None) -> Array:
    """r (v − ⟨v⟩ − x̂ ⟨x̂ v⟩): the derivative of x̂, which is symmetric."""
    off = normal * slope
    return r * (v - off if mean is None else v - off - mean)


def _tangent(*args: Array, rows: Rows, nonzero: tuple[bool, ...]) -> list[Array]:
    """dy, linear in those of dx, dγ and dβ that are not zero, which come last; and dx itself, where h is a result."""
    args, tangents = args[: len(args) - sum(nonzero)], iter(args[len(args) - sum(nonzero) :])
    x, scale, _, epsilon = rows.unpack(args)
    dx, dscale, dbias = (next(tangents) if m else None for m in nonzero)
    pivot, delta, r = _moments(rows, x, epsilon)
    normal = _normal(x, pivot, delta, r)
    dy = jnp.zeros(x.shape, jnp.float32)
    if dx is not None:
        wide = dx.astype(jnp.float32)
        wide = _projected(normal, r, wide, *_projection(rows, normal, wide))
        dy += wide if scale is None else wide * _per_row(rows.factor(scale), x)
    if dscale is not None:
        dy += normal * _per_row(dscale, x)
    dy = (dy if dbias is None else dy + _per_row(dbias, x)).astype(rows.dtype)
    return [dy] if dx is None or not rows.added else [dy, dx]


def _cotangent(*args: Array, rows: Rows, nonzero: tuple[bool, ...]) -> list[Array]:
    """dx, dγ and dβ of nonzero tangents, linear in the cotangents of y and h, which come last; dγ and dβ in float32."""
    primals, g, direct = rows.cotangents(args)
    x, scale, _, epsilon = rows.unpack(primals)
    weight = _per_row(rows.factor(scale), x)

    def scaled(g: Array) -> Array:
        return g if weight is None else g * weight

    g = g.astype(jnp.float32)
    moments = _moments(rows, x, epsilon)
    normal = _normal(x, *moments)
    dx = _projected(normal, moments[-1], scaled(g), *_projection(rows, normal, scaled(g)))
    dx = (dx if direct is None else dx + direct.astype(jnp.float32)).astype(x.dtype)
    # Numbers of their own: else XLA for GPUs writes x̂ down, for the sums to read (12 passes instead of 8).
    normal = _normal(x, *lax.optimization_barrier(moments))
    rows_alike = tuple(range(epsilon.ndim - 1, x.ndim - 1))
    sums = [v.sum(rows_alike) for v, m in ((normal * g, nonzero[1]), (g, nonzero[2])) if m]
    return [dx, *sums] if nonzero[0] else sums


def _gradients(
    cotangents: Sequence[Array | None], *primals: Array, rows: Rows, nonzero: tuple[bool, ...]
) -> Sequence[Array | None]:
    g, *direct = cotangents
    if g is None:
        return [*direct, *[None] * (sum(nonzero) - 1)]
    direct = [v for v in direct if v is not None]
    return _cotangent_p.bind(*primals, g, *direct, rows=rows._replace(added=bool(direct)), nonzero=nonzero)


_value_p = operation("rows", _value, platforms.forward)
_tangent_p = operation("rows_tangent", _tangent)
_cotangent_p = operation("rows_cotangent", _cotangent, platforms.backward)
transposed(_tangent_p, _gradients)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def standardize_rows(rows: Rows, *args: Array) -> list[Array]:
    """y of rows: x, the residual, the scale and the bias that there are, ε; and h where a residual was added."""
    return _value_p.bind(*args, rows=rows)


@partial(standardize_rows.defjvp, symbolic_zeros=True)
def _standardize_rows_jvp(rows: Rows, primals: Any, tangents: Any) -> tuple[list[Array], list[Array]]:
    y, *h = standardize_rows(rows, *primals)
    x, _, others = rows.split(primals)
    normalized = *(h or [x]), *others
    dx, dresidual, (*dvectors, depsilon) = rows.split([*map(nonzero_tangent, tangents)])
    if h:
        dx = plus(*(t if t is None else t.astype(h[0].dtype) for t in (dx, dresidual)))
    dx, dscale, dbias, _ = rows.unpack([dx, *dvectors, None])
    nonzero = tuple(t is not None for t in (dx, dscale, dbias))
    dy, dh = None, []
    if any(nonzero):
        found = (t for t in (dx, dscale, dbias) if t is not None)
        dy, *dh = _tangent_p.bind(*normalized, *found, rows=rows, nonzero=nonzero)
    if depsilon is not None:
        dy = plus(dy, _by_epsilon(rows._replace(added=False), depsilon, *normalized))
    zeros = map(jnp.zeros_like, h)
    return [y, *h], [jnp.zeros_like(y) if dy is None else dy, *(dh or zeros)]


def _by_epsilon(rows: Rows, depsilon: Array, *args: Array) -> Array:
    *others, epsilon = args
    return jax.jvp(lambda epsilon: _value(*others, epsilon, rows=rows)[0], (epsilon,), (depsilon,))[1]
