"""Statistics and their derivative, and statistics of all data from those of its parts."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm._find import find
from jaxnorm._look import Data, Statistics, about, among, own_copies, size, weigh
from jaxnorm._over import dot, inverse
from jaxnorm._tangents import moving, plus


def beside(over, found, x) -> tuple[Any, Any, Any]:
    """pivot, δ and var, as they meet `x`."""
    return over.repeated(found.pivot, x), over.repeated(found.delta, x), over.repeated(found.var, x)


def change(over, data, found, moved):
    """The change of what was `found`, linear in how the data moved, each part of which may be None.

    All of dμ is dδ: the pivot is a constant of the computation.
    """
    dx, *rest, drest = moved
    rules = zip((_by_values, _by_weights, _by_variances), (plus(dx, drest), *rest), strict=True)
    changes = [rule(over, data, found, t) for rule, t in rules if t is not None]
    changes = zip(*changes, strict=True) if changes else [()] * 3
    dn, dmean, dvar = (
        plus(*terms) if any(t is not None for t in terms) or v is None else jnp.zeros_like(v)
        for terms, v in zip(changes, (found.count, found.delta, found.var), strict=True)
    )
    dpivot = None if found.pivot is None else jnp.zeros_like(found.pivot)
    return Statistics(dn, dpivot, dmean, dvar)


def _by_values(over, data, found, dx):
    """dμ = ⟨dx⟩ and dvar = 2⟨(x − p)·dx⟩ − 2 δ·dμ, a vector less to read than 2⟨(x − μ)·dx⟩."""
    x, where, *_ = data
    d = about(data, *own_copies(3, x, over.repeated(found.pivot, x)))
    dx = among(dx.astype(d.dtype), where)
    terms = [dx, dot(d, dx)] if over.centered else [dot(d, dx)]
    *dmean, dvar = _means(over, data, found, *terms)
    if not over.centered:
        return None, None, 2 * dvar
    return None, dmean[0], 2 * (dvar - dot(found.delta, dmean[0]))


def _by_weights(over, data, found, dw):
    """dn = Σ dw, dμ = ⟨dw (x − μ)⟩ and dvar = ⟨dw (|x − μ|² − var)⟩, over the positions that count."""
    x, where, within, _ = data
    pivot, delta, var = beside(over, found, x)
    d = about(data, x, pivot, delta)
    dw = jnp.broadcast_to(dw, x.shape).astype(var.dtype)
    excess = dot(d, d) - var if within is None else dot(d, d) + within - var
    terms = [dw, dw.astype(d.dtype) * d, dw * excess] if over.centered else [dw, dw * excess]
    dn, *sums = over.across(*(over.sum(among(v, where)) for v in terms))
    dmean, dvar = (None, *(v * inverse(found.count).astype(v.dtype) for v in sums))[-2:]
    return dn, dmean, dvar


def _by_variances(over, data, found, dwithin):
    """dvar = ⟨dwithin⟩."""
    return None, None, *_means(over, data, found, among(dwithin, data.where))


def _means(over, data, found, *terms):
    """⟨term⟩ for each."""
    x, where, *_ = data
    sums = over.across(*(over.sum(weigh(v, where)) for v in terms))
    if where is None:
        n = size(over, x)
    elif over.names:
        n = found.count
    else:
        # Without collectives it is cheaper to count again than to keep.
        n = over.weight(x, where)
    share = inverse(n)
    return [v * share.astype(v.dtype) for v in sums]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0, inline=True)
def statistics(over, data):
    """What `find` finds, with its derivative."""
    return find(over, True, data)


@partial(statistics.defjvp, symbolic_zeros=True)
def _statistics_jvp(over, primals, tangents):
    (data,), (moved,) = primals, tangents
    found = statistics(over, data)
    # Keeps x and vectors for the transpose, and computes x − μ again.
    linear = jax.checkpoint(partial(change, over), prevent_cse=False)
    return found, linear(data, found, jax.tree.map(moving, moved))


def parts_of(parts) -> Data:
    """Statistics of parts, as data."""
    return Data(parts.pivot, parts.count, parts.var, parts.delta)


def pooled(over, parts) -> Statistics:
    """Statistics of all data, from those of its parts."""
    return statistics(over, parts_of(parts))


def averaged(over, parts) -> Statistics:
    """The same where the variance of the means is none of the variance: that is the average of the parts'."""
    whole = pooled(over, parts)
    share = parts.count * inverse(whole.count)
    var = jnp.where(parts.count > 0, share * parts.var, 0).sum(over.axes, keepdims=True)
    return whole._replace(var=jnp.where(whole.count == 0, 1, var))
