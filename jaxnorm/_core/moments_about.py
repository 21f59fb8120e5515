"""Moments of data about a pivot, from a single look at them.

For any pivot p, with d = x − p:    δ = ⟨d⟩      μ = p + δ      var = ⟨|d|²⟩ − |δ|²      where ⟨v⟩ = Σ w v / Σ w

Both sums lose no more than a factor 1 + |δ|²/var of the dtype's precision, so a pivot within a few standard deviations
of the mean is as good as the mean itself.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxnorm._core.barriers import Copy, barrier_copies
from jaxnorm._core.numerics import MaybeArray, deviation, masked, real_product, reciprocal, weighted, wide_dtype
from jaxnorm._core.reduction import Reduction


class Observations(NamedTuple):
    """Values and their weights, of which statistics are taken.

    Where a value is the mean of a part of the data, `within` is the variance within that part, and `residual` what the
    mean is beyond the number that `x` holds. For tangents the same. Any of them but the values may be None.
    """

    x: Any
    where: Any = None
    within: Any = None
    residual: Any = None


class Statistics(NamedTuple):
    """Count, mean and variance; the mean as `pivot + delta`, two numbers that hold more digits than one.

    Where the mean is held at 0, pivot and delta are None. Given statistics have their mean in the pivot, and no delta.
    """

    count: Any  # pyright: ignore[reportIncompatibleMethodOverride]
    pivot: Any
    delta: Any
    var: Any

    @property
    def mean(self) -> Any:
        """The mean in one number."""
        return self.pivot + self.delta


def masked_deviation(data: Observations, x: Array, pivot: MaybeArray, delta: MaybeArray = None) -> Array:
    """(x − pivot) − δ for all data, and 0 where they don't count. `x` are the values, or a copy of them."""
    if data.residual is None:
        return masked(deviation(x, pivot, delta), data.where)
    d = deviation(x, pivot) + data.residual
    return masked(d if delta is None else d - delta, data.where)


def weighted_means(
    reduction: Reduction, data: Observations, count: MaybeArray, *values: Array
) -> tuple[Array, list[Array]]:
    """The count, and ⟨v⟩ for each of some values, in one collective. A count of None is taken of the data."""
    x, where, *_ = data
    sums = [reduction.sum(weighted(v, where)) for v in values]
    if count is None and where is not None:
        count, *sums = reduction.psum(reduction.weight(x, where), *sums)
    else:
        count, sums = reduction.full_count(x) if count is None else count, reduction.psum(*sums)
    share = reciprocal(count)
    return count, [v * share.astype(v.dtype) for v in sums]


def moments_about(reduction: Reduction, data: Observations, pivot: MaybeArray, count: MaybeArray = None) -> Statistics:
    """Statistics about a pivot, None being 0, from one look at the data and one collective. The count may be known.

    A row in a GPU's registers has another way: `pivot._about_row_mean`.
    """
    x, subtracted = data.x, reduction.broadcast_groups(pivot, data.x)
    d = masked_deviation(data, x, subtracted)
    d_ = masked_deviation(data, *barrier_copies(Copy.SQUARES, x, subtracted))
    squares = real_product(d_, d_) if data.within is None else real_product(d_, d_) + masked(data.within, data.where)
    pivot = jnp.zeros((), wide_dtype(x)) if pivot is None else pivot
    count, means = weighted_means(reduction, data, count, *([d, squares] if reduction.centered else [squares]))
    if not reduction.centered:
        return Statistics(count, None, None, means[0])
    delta, square = means
    return Statistics(count, pivot, delta, jnp.maximum(square - real_product(delta, delta), 0.0))
