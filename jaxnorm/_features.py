"""What a feature scaler has seen: moments whose mean keeps its digits, and extremes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Inexact

from jaxnorm._look import Data, Statistics
from jaxnorm._over import included, inverse, wide_dtype
from jaxnorm._statistics import pooled, statistics


class FeatureStats(NamedTuple):
    """Moments of all data that a `jn.FeatureScaler` has seen, and their extremes if it scales by these.

    n = Σ wᵢ,    μ = mean + rest = Σ wᵢ xᵢ / n,    M2 = Σ wᵢ |xᵢ − μ|²

    `rest` is what the mean loses in rounding: a mean of 1e6 has steps of 1/16 in float32, and batches would be merged
    with that error. All have shape (channels,); `min` and `max` are None where `kind` is "standard". `jn.merge` makes
    them a commutative monoid, with what `init` gives as its identity. Raises nothing.

    Paper: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    >>> jn.FeatureScaler().init(2)[1].count
    Array([0., 0.], dtype=float32)
    """

    count: Float[Array, " channels"]  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: Inexact[Array, " channels"]
    m2: Float[Array, " channels"]
    rest: Inexact[Array, " channels"]
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
        whole = pooled(over, Statistics(self.count, self.mean, self.rest, self.m2 * inverse(self.count)))
        if self.min is None or self.max is None:
            return _in_words(whole, self.mean.dtype)
        low, high = _least(over, self.min), -_least(over, -self.max)
        return _in_words(whole, self.mean.dtype, low, high)


def within(moments) -> Any:
    """The variance of moments."""
    return jnp.where(moments.count == 0, 1, moments.m2 * inverse(moments.count))


def root(var) -> Any:
    """√var, with derivative 0 where it is 0."""
    positive = var > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, var, 1)), 0)


def unseen(shape, dtype, extremes):
    """What is known without data: the identity of merging."""
    mean = jnp.zeros(shape, wide_dtype(jnp.zeros((), dtype)))
    real = jnp.zeros_like(mean.real)
    return FeatureStats(real, mean, real, mean, *((real + jnp.inf, real - jnp.inf) if extremes else ()))


def features(over, x, where, like):
    """Those of data, for each feature as in `like`; nothing of a feature that is not finite."""
    found = statistics(over, Data(x, where))
    extremes = []
    if like.min is not None:
        low, high = (x, -x) if where is None else (jnp.where(included(where), v, jnp.inf) for v in (x, -x))
        extremes = [_least(over, low), -_least(over, high)]
    found = _in_words(found, like.mean.dtype, *extremes)
    finite = jnp.isfinite(found.mean) & jnp.isfinite(found.m2)
    for extreme in extremes:
        finite &= jnp.isfinite(extreme)
    nothing = (0, 0, 0, 0, jnp.inf, -jnp.inf)[: 4 + len(extremes)]
    return jax.tree.map(lambda v, n: jnp.where(finite, v, n), found, FeatureStats(*map(jnp.asarray, nothing)))


def _in_words(found, dtype, low=None, high=None):
    """Statistics as a sum of two numbers of this dtype, of which the first is the mean as near as it can be."""
    n, pivot, delta, var = found
    mean = (pivot + delta).astype(dtype)
    rest = ((pivot - mean.astype(pivot.dtype)) + delta).astype(dtype)
    real = mean.real.dtype
    return FeatureStats(
        n.astype(real), mean, (n * var).astype(real), rest,
        low if low is None else low.astype(real), high if high is None else high.astype(real),
    )  # fmt: skip


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
