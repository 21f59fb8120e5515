"""Moments: a commutative monoid of count, mean and sum of squared deviations."""

from collections.abc import Hashable, Sequence
from functools import reduce
from typing import NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike, Float, Inexact

from jaxnorm import _checks
from jaxnorm._features import FeatureStats, root, within
from jaxnorm._look import Data, Statistics
from jaxnorm._over import Over, inverse, real_dtype
from jaxnorm._placed import stacked
from jaxnorm._statistics import pooled, statistics


class Moments(NamedTuple):
    """Count (or sum of weights), mean, and sum of squared deviations from it.

    n = Σ wᵢ,    μ = Σ wᵢ xᵢ / n,    M2 = Σ wᵢ |xᵢ − μ|²

    All have the mean's shape; `count` and `m2` are real, also where the mean is complex. `jn.merge` makes them a
    commutative monoid, with `Moments.zeros` as its identity. Raises nothing.

    Paper: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    >>> jn.moments(jnp.array([1.0, 2.0, 3.0])).var.round(4)
    Array(0.6667, dtype=float32)
    """

    count: Float[Array, "*shape"]  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: Inexact[Array, "*shape"]
    m2: Float[Array, "*shape"]

    @classmethod
    def zeros(cls, shape: int | Sequence[int] = (), dtype: DTypeLike = jnp.float32) -> Self:
        """Moments of no data, for means of this shape and dtype: the identity of `jn.merge`.

        >>> jn.Moments.zeros(2).count
        Array([0., 0.], dtype=float32)
        """
        mean = jnp.zeros(shape, dtype)
        # Each an array of its own: no buffer can be donated twice.
        count, m2 = (jnp.zeros(shape, real_dtype(mean)) for _ in range(2))
        return cls(count, mean, m2)

    @property
    def var(self) -> Float[Array, "*shape"]:
        """The biased variance M2 / n; 1 where there is no data, so that dividing by it is safe."""
        return within(self)

    @property
    def std(self) -> Float[Array, "*shape"]:
        """√var, with derivative 0 where it is 0."""
        return root(self.var)

    def _pooled(self, over):
        return _moments(pooled(over, Statistics(self.count, self.mean, None, self.m2 * inverse(self.count))))


Kind = TypeVar("Kind", Moments, FeatureStats)


def moments(
    x: Inexact[ArrayLike, "..."],
    axis: int | Sequence[int] | None = None,
    *,
    where: ArrayLike | None = None,
    axis_name: Hashable | Sequence[Hashable] | None = None,
    keepdims: bool = False,
) -> Moments:
    """Moments of data over some axes, and over devices.

    n = Σ wᵢ,    μ = Σ wᵢ xᵢ / n,    M2 = Σ wᵢ |xᵢ − μ|²

    Accurate however large the mean is beside the deviation. Differentiable in `x` and in weights, to any order.

    Args:
        x: floating point or complex, any shape.
        axis: the axes to reduce; None for all.
        where: booleans or non-negative weights, with the dimensions of `x`, each of the same size or 1.
            What is excluded may be NaN.
        axis_name: the mapped axes (of vmap, pmap, shard_map) to merge over.
        keepdims: keep reduced axes, with size 1.

    Returns:
        `Moments` in float32 (float64 for float64; for complex `x` the mean is complex).

    Raises:
        TypeError: `x` is integer or boolean.
        ValueError: `axis` or `where` does not fit `x`; a weight is negative.
        NameError: `axis_name` is not bound.

    Paper: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    >>> count, mean, m2 = jn.moments(jnp.array([[1.0, 2.0], [3.0, 6.0]]), axis=0)
    >>> print(count, mean, m2)
    [2. 2.] [2. 4.] [2. 8.]
    """
    x = _checks.data(x, "moments")
    axes = tuple(range(x.ndim)) if axis is None else _checks.axes(axis, x.ndim, "moments: axis")
    over = Over(axes, _checks.names(axis_name, "moments"))
    found = _moments(statistics(over, Data(x, _checks.where(where, x, "moments"))))
    return found if keepdims else Moments(*(v.squeeze(axes) for v in found))


def _moments(found):
    """Statistics in other words."""
    return Moments(found.count, found.mean, found.count * found.var)


def merge(
    *parts: Kind,
    axis: int | Sequence[int] | None = None,
    axis_name: Hashable | Sequence[Hashable] | None = None,
) -> Kind:
    """Moments of all data, from the moments of its parts.

    n = Σ nᵢ,    μ = Σ nᵢ μᵢ / n,    M2 = Σ (M2ᵢ + nᵢ |μᵢ − μ|²)

    These are the moments of the means, weighted by the counts, plus what lies within the parts. Parts may have
    different counts, 0 too. Their order and grouping do not matter, up to rounding.

    Args:
        parts: Moments of one shape; or, with `axis`, a single one in which they are stacked. Or `FeatureStats`, the
            states of feature scalers: their extremes merge, too.
        axis: the axes along which they are stacked.
        axis_name: mapped axes (of vmap, pmap, shard_map): parts on other devices are merged in, in one collective.

    Returns:
        The same kind, of the shape of one part.

    Raises:
        TypeError: there is nothing to merge, or something else than Moments.
        ValueError: shapes differ, or `axis` is given with several parts.
        NameError: `axis_name` is not bound.

    Paper: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    >>> a, b = jn.moments(jnp.arange(3.0)), jn.moments(jnp.arange(3.0, 10.0))
    >>> print(*jn.merge(a, b))
    10.0 4.5 82.5
    """
    _checks.parts(parts, (Moments, FeatureStats), axis)
    stack = jax.tree.map(_stacked, *parts) if axis is None else jax.tree.map(jnp.asarray, parts[0])
    axes = _checks.axes(0 if axis is None else axis, stack.mean.ndim, "merge: axis", "a stack of moments")
    _checks.weights(stack.count, "merge: count")
    whole = stack._pooled(Over(axes, _checks.names(axis_name, "merge")))
    return jax.tree.map(lambda v: v.squeeze(axes), whole)


def _stacked(*values):
    dtype = reduce(jnp.promote_types, (jnp.asarray(v).dtype for v in values))
    return stacked(*(jnp.asarray(v, dtype) for v in values))
