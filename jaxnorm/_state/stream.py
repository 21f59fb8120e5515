"""Moments of a stream, whose sums keep their digits however long it is, and extremes.

A pair merges here, one part after another or two halves of many (`merge_pair`); `statistics.pooled` is the formula for
parts that are at hand together, on several devices, too.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxnorm._core.moments_about import Observations, Statistics
from jaxnorm._core.numerics import MaybeArray, add_with_residual, included, real_product, reciprocal
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.sharding import reshard_as
from jaxnorm._core.statistics import pooled, statistics
from jaxnorm._types import Moments

FullMoments = Any
"""`Moments` whose residuals are numbers, as `with_residuals` and all functions here give them."""


def zeros_like(mean: Array) -> Moments:
    """Moments of no data, each sharded like the mean: the identity of merging."""
    nothing = Moments.zeros((), mean.dtype)
    return jax.tree.map(lambda v: jnp.full_like(mean, v, v.dtype), nothing)


def moments_of(reduction: Reduction, x: Array, where: MaybeArray, extremes: bool = False, dtype: Any = None) -> Moments:
    """Moments of data, with or without extremes, in this dtype or that of arithmetic."""
    moments = as_moments(statistics(reduction, Observations(x, where)), dtype)
    if not extremes:
        return moments
    low, high = (x, -x) if where is None else (jnp.where(included(where), v, jnp.inf) for v in (x, -x))
    dtype = moments.m2.dtype
    return moments._replace(min=_least(reduction, low.astype(dtype)), max=-_least(reduction, high.astype(dtype)))


def feature_moments(reduction: Reduction, x: Array, where: MaybeArray, like: Moments) -> Moments:
    """Moments of data for each feature, with what `like` has; nothing of a feature that is not finite."""
    moments = moments_of(reduction, x, where, like.min is not None, like.mean.dtype)
    # A variance may be more than a number holds, of data that are finite: that is no reason to forget their mean.
    moments = moments._replace(m2=jnp.where(jnp.isnan(moments.m2), jnp.inf, moments.m2))
    known = jnp.isfinite(moments.mean) & jnp.isfinite(moments.count)
    for extreme in (moments.min, moments.max):
        known = known if extreme is None else known & jnp.isfinite(extreme)
    nothing = Moments.zeros((), moments.mean.dtype, extremes=moments.min is not None)
    return jax.tree.map(lambda v, other: jnp.where(known, v, other), moments, nothing)


def as_moments(stats: Statistics, dtype: Any = None) -> Moments:
    """Statistics as moments in this dtype: the mean as near as it can be, and what is left of it."""
    n, pivot, delta, var = stats
    dtype = dtype or pivot.dtype
    mean = (pivot + delta).astype(dtype)
    residual = ((pivot - mean.astype(pivot.dtype)) + delta).astype(dtype)
    # A constant count has no sharding. A select wants that of the mean.
    count, m2 = (reshard_as(v.astype(mean.real.dtype), mean) for v in (n, n * var))
    m2 = jnp.where(count == 0, 0, m2)
    # What is left of infinity is no number.
    residual = jnp.where(jnp.isfinite(mean), residual, 0)
    return Moments(count, mean, m2, jnp.zeros_like(count), residual, jnp.zeros_like(m2))


def as_statistics(moments: FullMoments) -> Statistics:
    """Moments as statistics: the other way of `as_moments`, but that the variance of no data is 0."""
    n, m2 = moments.count + moments.count_residual, moments.m2 + moments.m2_residual
    return Statistics(n, moments.mean, moments.mean_residual, m2 * reciprocal(n))


def with_residuals(moments: Moments) -> FullMoments:
    """Moments whose residuals are numbers, 0 for None."""
    count, mean, m2 = (jnp.asarray(v) for v in moments[:3])
    numbers = zip((count, mean, m2), moments[3:6], strict=True)
    residuals = (jnp.zeros_like(v) if residual is None else jnp.asarray(residual) for v, residual in numbers)
    extremes = (v if v is None else jnp.asarray(v) for v in moments[6:])
    return Moments(count, mean, m2, *residuals, *extremes)


def merge_over_devices(reduction: Reduction, moments: FullMoments) -> Moments:
    """Moments of a stack of parts, and of those on other devices, in one collective."""
    whole = as_moments(pooled(reduction, as_statistics(moments)))
    if moments.min is None:
        return whole
    return whole._replace(min=_least(reduction, moments.min), max=-_least(reduction, -moments.max))


def merge_by_halves(stack: FullMoments) -> Moments:
    """Moments of a stack of parts along axis 0, in pairs, then pairs of these, and so on."""
    while (size := stack.count.shape[0]) > 1:
        half = size // 2
        first, second, odd = (
            jax.tree.map(lambda v, part=part: v[part], stack)
            for part in (slice(half), slice(half, 2 * half), slice(2 * half, None))
        )
        pairs = merge_pair(first, second)
        stack = jax.tree.map(lambda v, last: jnp.concatenate([v, last]), pairs, odd) if size % 2 else pairs
    return stack


def merge_pair(seen: FullMoments, new: FullMoments, with_between_variance: bool = True) -> Moments:
    """Moments of both; exactly those of one where the other has no data.

    n = n₁ + n₂,    μ = μ₁ + (μ₂ − μ₁) n₂ / n,    M2 = M2₁ + M2₂ + |μ₂ − μ₁|² n₁ n₂ / n,    for n₁ ≥ n₂

    Each step is rounded, but not its sum with what it is added to, as it would be by `statistics.pooled`: after
    thousands of pairs, that shows. `with_between_variance`: how far means lie apart is part of M2.
    """
    first = seen.count >= new.count
    more, less = (jax.tree.map(lambda a, b, of=of: jnp.where(of, a, b), seen, new) for of in (first, ~first))
    n = add_with_residual(more.count, less.count, more.count_residual + less.count_residual)
    some, share = less.count > 0, less.count * reciprocal(n[0])
    step = (less.mean - more.mean) + (less.mean_residual - more.mean_residual)
    step = jnp.where(some, step, 0)
    mean = add_with_residual(more.mean, share.astype(step.dtype) * step, more.mean_residual)
    between = real_product((more.count * share).astype(step.dtype) * step, step) if with_between_variance else 0
    m2 = add_with_residual(more.m2, less.m2 + between, more.m2_residual + less.m2_residual)
    numbers, residuals = zip(n, mean, m2, strict=True)
    extremes = []
    if seen.min is not None:
        extremes = [jnp.minimum(seen.min, new.min), jnp.maximum(seen.max, new.max)]
    both = Moments(*numbers, *residuals, *extremes)
    return jax.tree.map(lambda both, alone: jnp.where(some, both, alone), both, more)


def _least(reduction: Reduction, v: Array) -> Array:
    """The least of all that shares a statistic, on all devices."""
    low = v.min(reduction.axes, keepdims=True, initial=jnp.inf)
    if not reduction.axis_names:
        return low
    least = lax.pmin(lax.stop_gradient(low), reduction.axis_names)
    # A minimum over devices has no derivative in JAX: it is that of those that have it, in equal shares.
    here = (low == least) & jnp.isfinite(low)
    moved = jnp.where(here, low - lax.stop_gradient(low), 0)
    sharers = lax.psum(here.astype(low.dtype), reduction.axis_names)
    return least + lax.psum(moved, reduction.axis_names) * reciprocal(sharers)
