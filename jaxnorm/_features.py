"""Moments of a stream, whose sums keep their digits however long it is, and extremes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from jaxnorm._look import Data, Statistics
from jaxnorm._over import dot, included, inverse
from jaxnorm._statistics import pooled, statistics


class FeatureStats(NamedTuple):
    """Moments of all data that a `jn.FeatureScaler` has seen, and their extremes if it scales by these.

    n = Σ wᵢ,    μ = Σ wᵢ xᵢ / n,    M2 = Σ wᵢ |xᵢ − μ|²

    `count`, `mean` and `m2` are these, as near as a number can be; `count_rest`, `mean_rest` and `m2_rest` are what
    that loses: to a count of 2²⁴ one more is nothing in float32, and a mean of 1e6 has steps of 1/16. All have shape
    (channels,); `min` and `max` are None where `kind` is "standard". `jn.merge` makes them a commutative monoid, with
    what `init` gives as its identity. Raises nothing.

    Paper: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances";
    Dekker 1971, "A floating-point technique for extending the available precision".

    >>> jn.FeatureScaler().init(2)[1].count
    Array([0., 0.], dtype=float32)
    """

    count: Float[Array, " channels"]  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: Inexact[Array, " channels"]
    m2: Float[Array, " channels"]
    count_rest: Float[Array, " channels"]
    mean_rest: Inexact[Array, " channels"]
    m2_rest: Float[Array, " channels"]
    min: Float[Array, " channels"] | None = None
    max: Float[Array, " channels"] | None = None

    @property
    def var(self) -> Float[Array, " channels"]:
        """The biased variance M2 / n; 1 where there is no data."""
        return within(self)

    @property
    def std(self) -> Float[Array, " channels"]:
        """√var, with derivative 0 where it is 0."""
        return root(self.var)

    def _pooled(self, over):
        n, m2 = self.count + self.count_rest, self.m2 + self.m2_rest
        whole = pooled(over, Statistics(n, self.mean, self.mean_rest, m2 * inverse(n)))
        if self.min is None or self.max is None:
            return in_words(whole, self.mean.dtype)
        return in_words(whole, self.mean.dtype, _least(over, self.min), -_least(over, -self.max))


def within(moments) -> Any:
    """The variance of moments."""
    return jnp.where(moments.count == 0, 1, moments.m2 * inverse(moments.count))


def root(var) -> Any:
    """√var, with derivative 0 where it is 0."""
    positive = var > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, var, 1)), 0)


def unseen(mean, extremes=False):
    """What is known without data, for means like this one: the identity of merging."""
    # Each an array of its own: no buffer can be donated twice.
    count, m2, count_rest, m2_rest = (jnp.zeros_like(mean.real) for _ in range(4))
    low, high = (jnp.full_like(mean.real, v) if extremes else None for v in (jnp.inf, -jnp.inf))
    return FeatureStats(count, jnp.zeros_like(mean), m2, count_rest, jnp.zeros_like(mean), m2_rest, low, high)


def features(over, x, where, like):
    """Those of data, for each feature as in `like`; nothing of a feature that is not finite."""
    found = statistics(over, Data(x, where))
    extremes = []
    if like.min is not None:
        low, high = (x, -x) if where is None else (jnp.where(included(where), v, jnp.inf) for v in (x, -x))
        extremes = [_least(over, low), -_least(over, high)]
    found = in_words(found, like.mean.dtype, *extremes)
    # A variance may be more than a number holds, of data that are finite.
    known = jnp.isfinite(found.mean) & jnp.isfinite(found.count)
    for extreme in extremes:
        known &= jnp.isfinite(extreme)
    otherwise = [0.0] * 6 + [jnp.inf, -jnp.inf][: len(extremes)]
    return jax.tree.map(lambda v, other: jnp.where(known, v, other), found, FeatureStats(*otherwise))  # pyright: ignore


def in_words(found, dtype, low=None, high=None) -> FeatureStats:
    """Statistics in this dtype: the mean as near as it can be, and what is left of it."""
    n, pivot, delta, var = found
    mean = (pivot + delta).astype(dtype)
    rest = ((pivot - mean.astype(pivot.dtype)) + delta).astype(dtype)
    count, m2 = (v.astype(mean.real.dtype) for v in (n, n * var))
    # Where squares overflow, their sum less the mean's is no number.
    m2 = jnp.where(jnp.isnan(m2), jnp.inf, m2)
    low, high = (v if v is None else v.astype(count.dtype) for v in (low, high))
    return FeatureStats(count, mean, m2, jnp.zeros_like(count), rest, jnp.zeros_like(m2), low, high)


def joined(seen, found, between=True) -> FeatureStats:
    """Moments of both; exactly those of one where the other has no data.

    n = n₁ + n₂,    μ = μ₁ + (μ₂ − μ₁) n₂ / n,    M2 = M2₁ + M2₂ + |μ₂ − μ₁|² n₁ n₂ / n,    for n₁ ≥ n₂

    Each step is rounded, but not its sum with what it is added to. `between`: how far means lie apart is part of M2.
    """
    first = seen.count >= found.count
    more, less = (jax.tree.map(lambda a, b, of=of: jnp.where(of, a, b), seen, found) for of in (first, ~first))
    n = _plus(more.count, less.count, more.count_rest + less.count_rest)
    some, share = less.count > 0, less.count * inverse(n[0])
    d = jnp.where(some, (less.mean - more.mean) + (less.mean_rest - more.mean_rest), 0)
    mean = _plus(more.mean, share.astype(d.dtype) * d, more.mean_rest)
    apart = dot((more.count * share).astype(d.dtype) * d, d) if between else 0
    m2 = _plus(more.m2, less.m2 + apart, more.m2_rest + less.m2_rest)
    numbers, rests = zip(n, mean, m2, strict=True)
    extremes = [] if seen.min is None else [jnp.minimum(seen.min, found.min), jnp.maximum(seen.max, found.max)]
    both = FeatureStats(*numbers, *rests, *extremes)
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
