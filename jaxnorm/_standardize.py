"""Standardize and affine: the one map of data that all norms share, and its derivative."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxnorm._statistics import deviation, included, spread, wide_dtype
from jaxnorm._tangents import moving, plus, times


def _rsqrt(v):
    """1/√v, and 0 where v = 0: a constant has no deviation to divide, also with ε = 0."""
    return jnp.where(v > 0, jax.lax.rsqrt(jnp.where(v > 0, v, 1)), 0)


def _finite(d, where):
    """`d`, and 0 where padding is NaN or Inf: what follows would turn a cotangent of 0 into 0 · NaN."""
    return d if where is None else jnp.where(included(where) | jnp.isfinite(d), d, 0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0, inline=True)
def standardize(dtype, x, where, pivot, delta, var, scale, bias, epsilon):
    """y = (x − μ) · scale / √(var + ε) + bias, with μ = pivot + delta, in the given dtype.

    That is no wider than the dtype of arithmetic on `x`. All but epsilon (a scalar) broadcast to `x`; where, pivot,
    delta, scale and bias may be None. With a delta, the pivot is taken for a constant, as `statistics` makes it.
    Padding that is not finite gives the bias.
    """
    a = spread(_rsqrt(var + epsilon), x).astype(wide_dtype(x))
    a = a if scale is None else a * scale.astype(a.dtype)
    y = _finite(deviation(x, pivot, delta), where) * a
    y = y if bias is None else y + bias.astype(a.dtype)
    if where is not None and not jnp.iscomplexobj(y):
        # Padding may hold the largest float: y stays finite there.
        most = jnp.finfo(dtype).max.astype(y.dtype)
        y = jnp.where(included(where), y, jnp.clip(y, -most, most))
    return y.astype(dtype)


@partial(standardize.defjvp, symbolic_zeros=True)
def _standardize_jvp(dtype, primals, tangents):
    """With r = 1/√(var + ε), a = scale · r and d = x − μ:

    dr = −½ r³ (dvar + dε)        dy = a dx + (dbias − a dμ) + d (r dscale + scale dr)

    Both brackets are vectors. Their broadcasts transpose to Σ g and Σ d g, the only reductions of the backward pass.
    """
    x, where, pivot, delta, var, scale, _, epsilon = primals
    # Weights act through the statistics only.
    changes = [moving(t) for t in (tangents[0], *tangents[2:])]

    # Keeps x and vectors for the transpose, and computes x − μ again.
    @partial(jax.checkpoint, prevent_cse=False)
    def linear(x, where, pivot, delta, var, scale, epsilon, changes):
        d = _finite(deviation(x, pivot, delta), where)
        dx, dpivot, ddelta, dvar, dscale, dbias, depsilon = jax.tree.map(lambda t: t.astype(d.dtype), changes)
        dmean, dvar = (t if t is None else spread(t, x) for t in (dpivot if delta is None else ddelta, dvar))
        r = spread(_rsqrt(var + epsilon), x).astype(d.dtype)
        s = jnp.ones((), d.dtype) if scale is None else scale.astype(d.dtype)
        # Not r³: that overflows before the product does.
        dr = times(-r / 2, times(r, times(r, plus(dvar, depsilon))))
        shift = plus(dbias, times(-r * s, dmean))
        slope = plus(times(r, dscale), times(s, dr))
        dy = plus(times(r * s, dx), shift, times(d, slope))
        return jnp.broadcast_to(dy, x.shape).astype(dtype)

    return standardize(dtype, *primals), linear(x, where, pivot, delta, var, scale, epsilon, changes)
