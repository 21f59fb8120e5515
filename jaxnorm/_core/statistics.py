"""Statistics and their derivative, and statistics of all data from those of its parts."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxnorm._core.barriers import Copy, barrier_copies
from jaxnorm._core.moments_about import Observations, Statistics, masked_deviation, weighted_means
from jaxnorm._core.numerics import masked, real_product, reciprocal
from jaxnorm._core.pivot import accurate_stats
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.tangents import nonzero_tangent, plus, recomputing

StatisticsTangents = tuple[Any, Any, Any]
"""Those of count, mean and variance; None for one that is zero."""


def broadcast_stats(reduction: Reduction, stats: Statistics, x: Array) -> Statistics:
    """Statistics with one number per channel, where groups or ghosts share one. The count stays what it is."""
    pivot, delta, var = (reduction.broadcast_groups(v, x) for v in (stats.pivot, stats.delta, stats.var))
    return Statistics(stats.count, pivot, delta, var)


def statistics_tangent(
    reduction: Reduction, data: Observations, stats: Statistics, tangents: Observations
) -> Statistics:
    """The tangent of statistics, linear in those of the data, each of which may be None.

    All of dμ is dδ: the pivot is a constant of the computation.
    """
    rules = [
        (_by_values, plus(tangents.x, tangents.residual)),
        (_by_weights, tangents.where),
        (_by_variances, tangents.within),
    ]
    found = [rule(reduction, data, stats, t) for rule, t in rules if t is not None]
    by_result = zip(*found, strict=True) if found else [()] * 3
    dcount, dmean, dvar = (
        plus(*terms) if any(t is not None for t in terms) or v is None else jnp.zeros_like(v)
        for terms, v in zip(by_result, (stats.count, stats.delta, stats.var), strict=True)
    )
    dpivot = None if stats.pivot is None else jnp.zeros_like(stats.pivot)
    return Statistics(dcount, dpivot, dmean, dvar)


def _by_values(reduction: Reduction, data: Observations, stats: Statistics, dx: Array) -> StatisticsTangents:
    """dμ = ⟨dx⟩ and dvar = 2⟨(x − p)·dx⟩ − 2 δ·dμ, a vector less to read than 2⟨(x − μ)·dx⟩."""
    pivot = reduction.broadcast_groups(stats.pivot, data.x)
    d = masked_deviation(data, *barrier_copies(Copy.STATISTICS_TANGENT, data.x, pivot))
    dx = masked(dx.astype(d.dtype), data.where)
    terms = [dx, real_product(d, dx)] if reduction.centered else [real_product(d, dx)]
    *dmean, dvar = _means(reduction, data, stats, *terms)
    if not reduction.centered:
        return None, None, 2 * dvar
    return None, dmean[0], 2 * (dvar - real_product(stats.delta, dmean[0]))


def _by_weights(reduction: Reduction, data: Observations, stats: Statistics, dw: Array) -> StatisticsTangents:
    """dn = Σ dw, dμ = Σ dw (x − μ) / n and dvar = Σ dw (|x − μ|² − var) / n, over the positions that count."""
    x, where, within, _ = data
    _, pivot, delta, var = broadcast_stats(reduction, stats, x)
    d = masked_deviation(data, x, pivot, delta)
    dw = jnp.broadcast_to(dw, x.shape).astype(var.dtype)
    excess = real_product(d, d) - var if within is None else real_product(d, d) + within - var
    terms = [dw, dw.astype(d.dtype) * d, dw * excess] if reduction.centered else [dw, dw * excess]
    dn, *sums = reduction.psum(*(reduction.sum(masked(v, where)) for v in terms))
    dmean, dvar = (None, *(v * reciprocal(stats.count).astype(v.dtype) for v in sums))[-2:]
    return dn, dmean, dvar


def _by_variances(reduction: Reduction, data: Observations, stats: Statistics, dwithin: Array) -> StatisticsTangents:
    """dvar = ⟨dwithin⟩."""
    (dvar,) = _means(reduction, data, stats, masked(dwithin, data.where))
    return None, None, dvar


def _means(reduction: Reduction, data: Observations, stats: Statistics, *terms: Array) -> list[Array]:
    """⟨term⟩ for each."""
    # Without collectives it is cheaper to take a count again than to keep it.
    known = stats.count if reduction.axis_names and data.where is not None else None
    return weighted_means(reduction, data, known, *terms)[1]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=0)
def statistics(reduction: Reduction, data: Observations) -> Statistics:
    """Accurate statistics, with their derivative."""
    return accurate_stats(reduction, True, data)


@partial(statistics.defjvp, symbolic_zeros=True)
def _statistics_jvp(reduction: Reduction, primals: Any, tangents: Any) -> tuple[Statistics, Statistics]:
    (data,), (ddata,) = primals, tangents
    stats = statistics(reduction, data)
    return stats, recomputing(statistics_tangent, reduction)(data, stats, jax.tree.map(nonzero_tangent, ddata))


def as_observations(parts: Statistics) -> Observations:
    """Statistics of parts as data: their means, which weigh by their counts."""
    return Observations(parts.pivot, parts.count, parts.var, parts.delta)


def pooled(reduction: Reduction, parts: Statistics) -> Statistics:
    """Statistics of all data, from those of its parts, which are all at hand.

    n = Σ nᵢ,    μ = Σ nᵢ μᵢ / n,    var = Σ nᵢ (varᵢ + |μᵢ − μ|²) / n

    For pairs, one part of a stream after another, there is `stream.merge_pair`.
    """
    return statistics(reduction, as_observations(parts))


def averaged(reduction: Reduction, parts: Statistics) -> Statistics:
    """Pooled statistics, but for the variance: the average of the parts', without how far their means lie apart."""
    whole = pooled(reduction, parts)
    share = parts.count * reciprocal(whole.count)
    var = jnp.where(parts.count > 0, share * parts.var, 0).sum(reduction.axes, keepdims=True)
    return whole._replace(var=jnp.where(whole.count == 0, 1, var))
