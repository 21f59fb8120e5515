"""Moments of a stream, whose sums keep their digits however long it is, and extremes.

A pair merges here, one part after another or two halves of many; `_statistics.pooled` is the formula for parts that are
at hand together, on several devices, too.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._look import Data, Statistics
from jaxnorm._over import dot, included, inverse
from jaxnorm._placed import back
from jaxnorm._statistics import pooled, statistics
from jaxnorm._trees import Moments


def unseen(mean):
    """What is known without data, for means like this one: the identity of merging."""
    nothing = Moments.zeros((), mean.dtype)
    # Each lies as the mean does.
    return jax.tree.map(lambda v: jnp.full_like(mean, v, v.dtype), nothing)


def moments_of(over, x, where, extremes=False, dtype=None) -> Moments:
    """Moments of data, with or without extremes, in this dtype or that of arithmetic."""
    found = in_words(statistics(over, Data(x, where)), dtype)
    if not extremes:
        return found
    low, high = (x, -x) if where is None else (jnp.where(included(where), v, jnp.inf) for v in (x, -x))
    dtype = found.m2.dtype
    return found._replace(min=_least(over, low.astype(dtype)), max=-_least(over, high.astype(dtype)))


def features(over, x, where, like) -> Moments:
    """Those of data, for each feature as in `like`; nothing of a feature that is not finite."""
    found = moments_of(over, x, where, like.min is not None, like.mean.dtype)
    # A variance may be more than a number holds, of data that are finite: that is no reason to forget their mean.
    found = found._replace(m2=jnp.where(jnp.isnan(found.m2), jnp.inf, found.m2))
    known = jnp.isfinite(found.mean) & jnp.isfinite(found.count)
    for extreme in (found.min, found.max):
        known = known if extreme is None else known & jnp.isfinite(extreme)
    nothing = Moments.zeros((), found.mean.dtype, extremes=found.min is not None)
    return jax.tree.map(lambda v, other: jnp.where(known, v, other), found, nothing)


def in_words(found, dtype=None) -> Moments:
    """Statistics in this dtype: the mean as near as it can be, and what is left of it."""
    n, pivot, delta, var = found
    dtype = dtype or pivot.dtype
    mean = (pivot + delta).astype(dtype)
    rest = ((pivot - mean.astype(pivot.dtype)) + delta).astype(dtype)
    # A count that is known lies nowhere: for selects it is to lie as the mean does.
    count, m2 = (back(v.astype(mean.real.dtype), mean) for v in (n, n * var))
    m2 = jnp.where(count == 0, 0, m2)
    # What is left of infinity is no number.
    rest = jnp.where(jnp.isfinite(mean), rest, 0)
    return Moments(count, mean, m2, jnp.zeros_like(count), rest, jnp.zeros_like(m2))


def with_residuals(moments) -> Moments:
    """Moments whose residuals are numbers."""
    count, mean, m2 = (jnp.asarray(v) for v in moments[:3])
    numbers = zip((count, mean, m2), moments[3:6], strict=True)
    residuals = (jnp.zeros_like(v) if residual is None else jnp.asarray(residual) for v, residual in numbers)
    extremes = (v if v is None else jnp.asarray(v) for v in moments[6:])
    return Moments(count, mean, m2, *residuals, *extremes)


def over_devices(over, moments) -> Moments:
    """Moments of a stack of parts, and of those on other devices, in one collective."""
    n, m2 = moments.count + moments.count_residual, moments.m2 + moments.m2_residual
    whole = in_words(pooled(over, Statistics(n, moments.mean, moments.mean_residual, m2 * inverse(n))))
    if moments.min is None:
        return whole
    return whole._replace(min=_least(over, moments.min), max=-_least(over, -moments.max))


def halved(stack) -> Moments:
    """Moments of a stack of parts along axis 0, in pairs, then pairs of these, and so on."""
    while (size := stack.count.shape[0]) > 1:
        half = size // 2
        first, second, odd = (
            jax.tree.map(lambda v, part=part: v[part], stack)
            for part in (slice(half), slice(half, 2 * half), slice(2 * half, None))
        )
        pairs = joined(first, second)
        stack = jax.tree.map(lambda v, rest: jnp.concatenate([v, rest]), pairs, odd) if size % 2 else pairs
    return stack


def joined(seen, found, between=True) -> Moments:
    """Moments of both; exactly those of one where the other has no data.

    n = n₁ + n₂,    μ = μ₁ + (μ₂ − μ₁) n₂ / n,    M2 = M2₁ + M2₂ + |μ₂ − μ₁|² n₁ n₂ / n,    for n₁ ≥ n₂

    Each step is rounded, but not its sum with what it is added to. `between`: how far means lie apart is part of M2.
    """
    first = seen.count >= found.count
    more, less = (jax.tree.map(lambda a, b, of=of: jnp.where(of, a, b), seen, found) for of in (first, ~first))
    n = _plus(more.count, less.count, more.count_residual + less.count_residual)
    some, share = less.count > 0, less.count * inverse(n[0])
    d = jnp.where(some, (less.mean - more.mean) + (less.mean_residual - more.mean_residual), 0)
    mean = _plus(more.mean, share.astype(d.dtype) * d, more.mean_residual)
    apart = dot((more.count * share).astype(d.dtype) * d, d) if between else 0
    m2 = _plus(more.m2, less.m2 + apart, more.m2_residual + less.m2_residual)
    numbers, rests = zip(n, mean, m2, strict=True)
    extremes = [] if seen.min is None else [jnp.minimum(seen.min, found.min), jnp.maximum(seen.max, found.max)]
    both = Moments(*numbers, *rests, *extremes)
    return jax.tree.map(lambda new, old: jnp.where(some, new, old), both, more)


def _plus(a, b, rest):
    """a + b + rest in two numbers, the second without derivative. The sum of the first two is exact (Knuth)."""
    total = a + b
    part = total - a
    rest += lax.stop_gradient((a - (total - part)) + (b - part))
    near = total + rest
    left = lax.stop_gradient(rest - (near - total))
    # The rest of infinity is no number.
    return near, jnp.where(jnp.isfinite(near), left, 0)


def _least(over, v):
    """The least of all that shares a statistic, on all devices."""
    low = v.min(over.axes, keepdims=True, initial=jnp.inf)
    if not over.names:
        return low
    least = lax.pmin(lax.stop_gradient(low), over.names)
    # A minimum over devices has no derivative in JAX: it is that of those that have it, in equal shares.
    here = (low == least) & jnp.isfinite(low)
    moved = jnp.where(here, low - lax.stop_gradient(low), 0)
    return least + lax.psum(moved, over.names) * inverse(lax.psum(here.astype(low.dtype), over.names))
