"""Standardize and affine: the one map of data that all norms share, and its derivative."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxnorm._compilers import by_platform, total
from jaxnorm._find import find
from jaxnorm._look import Data, narrowed, own_copies
from jaxnorm._over import deviation, fill, included, wide_dtype
from jaxnorm._statistics import beside, change
from jaxnorm._tangents import moving, plus, times


def _rsqrt(v):
    """1/√v; 0 where v = 0, as a constant has no deviation to divide, also with ε = 0; NaN where v is no number or ∞."""
    v = jnp.where(v < jnp.inf, v, jnp.nan)
    return jax.lax.rsqrt(jnp.where(v == 0, jnp.inf, v))


def _factor(pivot, v):
    """The same, for data about a pivot."""
    if pivot is not None:
        return _rsqrt(v)

    # Where the mean square of x is 0, so is x, and any number does: this one lets a GPU keep a row in registers.
    # The remainder of ∞ is NaN: a select, or a second use of v, would keep the row from staying in registers.
    def some(v):
        limits = jnp.finfo(v.dtype)
        return jax.lax.rsqrt(jnp.maximum(jax.lax.rem(v, limits.max.astype(v.dtype)), limits.tiny))

    return by_platform(v, cpu=_rsqrt, default=some)


def _finite(d, x, where):
    """`d`, and 0 where padding is NaN or Inf: what follows would turn a cotangent of 0 into 0 · NaN."""
    return d if where is None else jnp.where(included(where) | jnp.isfinite(x), d, 0)


def _deviation(copy, x, where, pivot, delta):
    """x − μ, from operands of its own."""
    x, *mean = own_copies(copy, x, pivot, delta)
    return _finite(deviation(x, *mean), x, where)


def _value(dtype, x, where, pivot, delta, var, scale, bias, epsilon):
    """y = (x − μ) · scale / √(var + ε) + bias, with μ = pivot + delta."""
    a = _factor(pivot, var + epsilon).astype(wide_dtype(x))
    a = a if scale is None else a * scale.astype(a.dtype)
    y = _deviation(2, x, where, pivot, delta) * a
    return narrowed(y if bias is None else y + bias.astype(a.dtype), where, dtype)


def _change(dtype, x, where, pivot, delta, var, scale, epsilon, tangents):
    """With r = 1/√(var + ε), a = scale · r and d = x − μ:

    dr = −½ r³ (dvar + dε)        dy = a dx + (dbias − a dμ) + d (r dscale + scale dr)
    """
    dx, dmean, dvar, dscale, dbias, depsilon = (t if t is None else t.astype(wide_dtype(x)) for t in tangents)
    r = _rsqrt(var + epsilon).astype(wide_dtype(x))
    s = jnp.ones((), r.dtype) if scale is None else scale.astype(r.dtype)
    # Not r³: that overflows before the product does.
    dr = times(-r / 2, times(r, times(r, plus(dvar, depsilon))))
    terms = _terms_each if jnp.broadcast_shapes(r.shape, s.shape) == x.shape else _terms_of_vectors
    found = terms(x, where, pivot, delta, r, s, dx, dmean, dr, dscale, dbias)
    return total(dtype, *(t for t in found if t is not None))


def _terms_of_vectors(x, where, pivot, delta, r, s, dx, dmean, dr, dscale, dbias):
    """a dx, and both brackets as vectors: they transpose to Σ g and Σ d g, all reductions of the backward pass."""
    slope = plus(times(r, dscale), times(s, dr))
    shift = plus(dbias, times(-r * s, dmean))
    if where is None and delta is not None and slope is not None:
        # d slope = (x − p) slope − δ slope: the second is a vector, and one fewer is left to read beside x.
        shift, delta = plus(shift, times(-delta, slope)), None
    x_, *mean, a = own_copies(4, x, pivot, delta, r * s)
    return times(a, dx), _filled(shift, x), times(_finite(deviation(x_, *mean), x_, where), _filled(slope, x))


def _terms_each(x, where, pivot, delta, r, s, dx, dmean, dr, dscale, dbias):
    """The same where scale lies along the reduced axes: no product of r and s is a vector, and each sum has its own."""

    def copies(copy):
        x_, *mean, r_, s_ = own_copies(copy, x, pivot, delta, r, s)
        return _finite(deviation(x_, *mean), x_, where), r_, s_

    (d4, _, s4), (d5, r5, _), (_, r6, s6), (_, _, s7) = map(copies, (4, 5, 6, 7))
    return (
        times(s6, times(r6, dx)),
        times(s7, _filled(times(-r, dmean), x)),
        _filled(dbias, x),
        times(s4, times(d4, _filled(dr, x))),
        times(d5, times(r5, _filled(dscale, x))),
    )


def _filled(t, x):
    """A vector as large as `x`. The zero makes it vary over a mesh as x does before: the transpose sends vectors."""
    return t if t is None else fill(t + jax.lax.full_like(x, 0, t.dtype, shape=()), x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0, inline=True)
def standardize(dtype, x, where, mean, var, scale, bias, epsilon):
    """y = (x − mean) · scale / √(var + ε) + bias, in the given dtype, by a mean and variance that are given.

    That dtype is no wider than the dtype of arithmetic on `x`. All but epsilon (a scalar) broadcast to `x`; where,
    mean, scale and bias may be None. Padding that is not finite gives the bias.
    """
    return _value(dtype, x, where, mean, None, var, scale, bias, epsilon)


@partial(standardize.defjvp, symbolic_zeros=True)
def _standardize_jvp(dtype, primals, tangents):
    x, where, mean, var, scale, _, epsilon = primals
    # Weights act through the statistics only.
    changes = [moving(t) for t in (tangents[0], *tangents[2:])]

    # Keeps x and vectors for the transpose, and computes x − μ again.
    @partial(jax.checkpoint, prevent_cse=False)
    def linear(x, where, mean, var, scale, epsilon, changes):
        return _change(dtype, x, where, mean, None, var, scale, epsilon, changes)

    return standardize(dtype, *primals), linear(x, where, mean, var, scale, epsilon, changes)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
@partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def standardize_by_own(over, dtype, kept, x, where, expected, scale, bias, epsilon):
    """The same by the statistics of `x` itself, as `find` finds them, and these."""
    found = find(over, kept, Data(x, where), expected)
    return _value(dtype, x, where, *beside(over, found, x), scale, bias, epsilon), found


@partial(standardize_by_own.defjvp, symbolic_zeros=True)
def _standardize_by_own_jvp(over, dtype, kept, primals, tangents):
    x, where, _, scale, _, epsilon = primals
    dx, dw, _, dscale, dbias, depsilon = jax.tree.map(moving, tangents)
    y, found = standardize_by_own(over, dtype, True, *primals)

    @partial(jax.checkpoint, prevent_cse=False)
    def linear(x, where, found, scale, epsilon, dx, dw, rest):
        # Once for both: the transpose rounds the sum of what comes back from both.
        dx = dx if dx is None else dx.astype(wide_dtype(x))
        dfound = change(over, Data(x, where), found, Data(dx, dw))
        _, *dmoments = beside(over, dfound, x)
        return _change(dtype, x, where, *beside(over, found, x), scale, epsilon, (dx, *dmoments, *rest)), dfound

    return (y, found), linear(x, where, found, scale, epsilon, dx, dw, (dscale, dbias, depsilon))
