"""Layer and RMS norm of rows: the value, its derivative and the transpose of that, each an operation with kernels.

x has its features last. Scale, bias and ε have the leading axes of `x` that they vary along, which come first: none, or
those of the examples where each has a scale of its own. With r = 1/√(var + ε) and x̂ = (x − μ) r:

    y  = γ x̂ + β
    dy = γ r (dx − ⟨dx⟩ − x̂ ⟨x̂ dx⟩) + x̂ dγ + dβ
    dx = r (γ g − ⟨γ g⟩ − x̂ ⟨γ g x̂⟩)        dγ = Σ x̂ g        dβ = Σ g        g the cotangent of y

RMS norm has no ⟨dx⟩ and no ⟨γ g⟩. The formulas are what every platform can do, and what further derivatives are of; a
platform with a kernel has its own value and transpose. All of them keep x, γ and ε, and compute x̂ anew.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jaxtyping import Array

from jaxnorm._compilers import own
from jaxnorm._core.kernels import platforms
from jaxnorm._core.kernels.arithmetic import inverse_root


class Rows(NamedTuple):
    """A norm of rows, as far as it is known when tracing."""

    centered: bool
    dtype: Any
    """That of y."""
    named: bool
    """Whether the kernel was asked for by name: where there is none, that is an error."""
    scaled: bool = True
    biased: bool = True

    def unpack(self, args):
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
        pivot = own(1, _mean(d))
        d = d - pivot
        delta = _mean(d)
        d = d - delta
    v = _mean(d * d) + _per_row(epsilon, x)
    return pivot, delta, inverse_root(v)


def _normal(x: Array, pivot: Array | None, delta: Array | None, r: Array) -> Array:
    """x̂."""
    d = x.astype(jnp.float32)
    return (d if pivot is None or delta is None else (d - pivot) - delta) * r


def _value(rows: Rows, *args: Array) -> Array:
    x, scale, bias, epsilon = rows.unpack(args)
    y = _normal(x, *_moments(rows, x, epsilon))
    y = y if scale is None else y * _per_row(scale, x)
    return (y if bias is None else y + _per_row(bias, x)).astype(rows.dtype)


def _projection(rows: Rows, normal: Array, v: Array) -> tuple[Array, ...]:
    """⟨x̂ v⟩, and ⟨v⟩ where the mean counts."""
    return (_mean(normal * v), _mean(v)) if rows.centered else (_mean(normal * v),)


def _projected(normal: Array, r: Array, v: Array, along: Array, mean: Array | None = None) -> Array:
    """r (v − ⟨v⟩ − x̂ ⟨x̂ v⟩): the derivative of x̂, which is symmetric."""
    off = normal * along
    return r * (v - off if mean is None else v - off - mean)


def _tangent(rows: Rows, moved: tuple[bool, ...], *args: Array) -> Array:
    """dy, linear in those of dx, dγ and dβ that moved; they come last."""
    args, tangents = args[: len(args) - sum(moved)], iter(args[len(args) - sum(moved) :])
    x, scale, _, epsilon = rows.unpack(args)
    dx, dscale, dbias = (next(tangents) if m else None for m in moved)
    pivot, delta, r = _moments(rows, x, epsilon)
    normal = _normal(x, pivot, delta, r)
    dy = jnp.zeros(x.shape, jnp.float32)
    if dx is not None:
        dx = dx.astype(jnp.float32)
        dx = _projected(normal, r, dx, *_projection(rows, normal, dx))
        dy += dx if scale is None else dx * _per_row(scale, x)
    if dscale is not None:
        dy += normal * _per_row(dscale, x)
    return (dy if dbias is None else dy + _per_row(dbias, x)).astype(rows.dtype)


def _cotangent(rows: Rows, moved: tuple[bool, ...], *args: Array) -> list[Array]:
    """Those of dx, dγ and dβ that moved, linear in the cotangent of y, which comes last; dγ and dβ in float32."""
    *primals, g = args
    x, scale, _, epsilon = rows.unpack(primals)
    weight = None if scale is None else _per_row(scale, x)

    def weighted(g: Array) -> Array:
        return g if weight is None else g * weight

    g = g.astype(jnp.float32)
    moments = _moments(rows, x, epsilon)
    normal = _normal(x, *moments)
    dx = _projected(normal, moments[-1], weighted(g), *_projection(rows, normal, weighted(g))).astype(x.dtype)
    # Numbers of their own: else XLA for GPUs writes x̂ down, for the sums to read (12 passes instead of 8).
    normal = _normal(x, *lax.optimization_barrier(moments))
    rows_alike = tuple(range(epsilon.ndim - 1, x.ndim - 1))
    sums = [v.sum(rows_alike) for v, m in ((normal * g, moved[1]), (g, moved[2])) if m]
    return [dx, *sums] if moved[0] else sums


# Operations: a formula for every platform, kernels for some.


def _operation(name: str, formula: Callable[..., Any], kernel: Callable[..., Any] | None, several: bool) -> Primitive:
    """A primitive whose derivatives are those of its formula."""
    operation = Primitive(f"jaxnorm_{name}")
    operation.multiple_results = several

    @lru_cache(maxsize=256)
    def abstract(avals, params):
        # That of the formula: its sharding, and how it varies over a mesh.
        found = jax.make_jaxpr(partial(formula, **dict(params)))(*avals).out_avals
        return found if several else found[0]

    @lru_cache(maxsize=256)
    def program(params):
        return jax.jit(partial(operation.bind, **dict(params)))

    def batch(args, axes, **params):
        size = next(v.shape[a] for v, a in zip(args, axes, strict=True) if a is not None)
        args = [
            jnp.broadcast_to(v, (size, *v.shape)) if a is None else jnp.moveaxis(v, a, 0)
            for v, a in zip(args, axes, strict=True)
        ]
        found = operation.bind(*args, **params)
        return (found, [0] * len(found)) if several else (found, 0)

    def derivative(primals, tangents, **params):
        tangents = [ad.instantiate_zeros(t) for t in tangents]
        return jax.jvp(partial(formula, **params), tuple(primals), tuple(tangents))

    operation.def_impl(lambda *args, **params: program(tuple(params.items()))(*args))
    operation.def_abstract_eval(lambda *avals, **params: abstract(avals, tuple(params.items())))
    batching.primitive_batchers[operation] = batch
    ad.primitive_jvps[operation] = derivative
    platforms.register(operation, formula, kernel, several)
    return operation


_value_p = _operation("rows", lambda *args, rows: _value(rows, *args), platforms.forward, several=False)
_tangent_p = _operation("rows_tangent", lambda *args, rows, moved: _tangent(rows, moved, *args), None, several=False)
_cotangent_p = _operation(
    "rows_cotangent", lambda *args, rows, moved: _cotangent(rows, moved, *args), platforms.backward, several=True
)


def _transpose(g, *args, rows, moved):
    primals, tangents = args[: len(args) - sum(moved)], args[len(args) - sum(moved) :]
    if isinstance(g, ad.Zero):
        return [None] * len(args)
    found = iter(_cotangent_p.bind(*primals, g, rows=rows, moved=moved))
    found = [
        v.astype(t.aval.dtype) if ad.is_undefined_primal(t) else None for v, t in zip(found, tangents, strict=True)
    ]
    return [None] * len(primals) + found


ad.primitive_transposes[_tangent_p] = _transpose


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def standardize_rows(rows: Rows, *args: Array) -> Array:
    """y of rows: x, the scale and the bias that there are, ε."""
    return _value_p.bind(*args, rows=rows)


@partial(standardize_rows.defjvp, symbolic_zeros=True)
def _standardize_rows_jvp(rows, primals, tangents):
    y = standardize_rows(rows, *primals)
    *tangents, depsilon = (None if isinstance(t, SymbolicZero) else t for t in tangents)
    dx, dscale, dbias, _ = rows.unpack([*tangents, None])
    moved = tuple(t is not None for t in (dx, dscale, dbias))
    dy = None
    if any(moved):
        dy = _tangent_p.bind(*primals, *(t for t in (dx, dscale, dbias) if t is not None), rows=rows, moved=moved)
    if depsilon is not None:
        *args, epsilon = primals
        _, by_epsilon = jax.jvp(lambda epsilon: _value(rows, *args, epsilon), (epsilon,), (depsilon,))
        dy = by_epsilon if dy is None else dy + by_epsilon
    return y, jnp.zeros_like(y) if dy is None else dy
