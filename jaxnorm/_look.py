"""One look at data: what statistics are of, what they are, and what a single pass over the data says.

For any pivot p, with d = x − p:    δ = ⟨d⟩      μ = p + δ      var = ⟨|d|²⟩ − |δ|²

Both sums lose no more than a factor 1 + |δ|²/var of the dtype's precision, so a pivot within a few standard deviations
of the mean is as good as the mean itself.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxnorm._compilers import own
from jaxnorm._over import deviation, dot, included, inverse, real_dtype, wide_dtype


class Data(NamedTuple):
    """What statistics are of: values and their weights.

    Where a value is the mean of a part of the data, there is its variance within the part, and what is left of it
    beside a number that does not hold all its digits. The same for tangents. Any of them but the values may be None.
    """

    x: Any
    where: Any = None
    within: Any = None
    rest: Any = None


class Statistics(NamedTuple):
    """Count, mean and variance; the mean as `pivot + delta`, two numbers that hold more digits than one."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    pivot: Array | None
    delta: Array | None
    var: Array

    @property
    def mean(self) -> Any:
        """In one number."""
        return self.pivot + self.delta  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]


def among(d, where):
    """`d` where it counts, and 0 elsewhere: a weight of 0 would leave 0 · NaN, forward or in the transpose."""
    return d if where is None else jnp.where(included(where), d, 0)


def narrowed(y, where, dtype):
    """`y` in a dtype, finite where padding is: that may hold the largest float."""
    if where is not None and not jnp.iscomplexobj(y):
        most = jnp.finfo(dtype).max.astype(y.dtype)
        y = jnp.where(included(where), y, jnp.clip(y, -most, most))
    return y.astype(dtype)


def weigh(v, where):
    """`v` by its weights."""
    return v if where is None or where.dtype == jnp.bool_ else v * where.astype(v.dtype)


def own_copies(copy, x, *vectors) -> tuple[Any, ...]:
    """What a deviation is computed from, as copies that no other deviation has."""
    # To convert x would be shared, to read it is not.
    x = x if x.dtype == wide_dtype(x) else own(copy, x)
    return x, *(v if v is None else own(copy, v) for v in vectors)


def about(data, x, pivot, delta=None):
    """(x − pivot) − δ for all data, 0 where they don't count. `x` are the values, in a copy of their own or not."""
    if data.rest is None:
        return among(deviation(x, pivot, delta), data.where)
    d = deviation(x, pivot) + data.rest
    return among(d if delta is None else d - delta, data.where)


def look(over, data, pivot, n=None) -> tuple[Any, Any, Any]:
    """count, δ and var of data about a pivot, from one look at them and one collective. The count may be known."""
    x, where, within, _ = data
    pivot = over.repeated(pivot, x)
    d, d_ = (about(data, *operands) for operands in ((x, pivot), own_copies(1, x, pivot)))
    squares = dot(d_, d_) if within is None else dot(d_, d_) + among(within, where)
    sums = [over.sum(weigh(v, where)) for v in ([d, squares] if over.centered else [squares])]
    if n is None and where is not None:
        n, *sums = over.across(over.weight(x, where), *sums)
    else:
        n, sums = size(over, x) if n is None else n, over.across(*sums)
    *delta, square = (v * inverse(n).astype(v.dtype) for v in sums)
    if not over.centered:
        return n, None, square
    return n, delta[0], jnp.maximum(square - dot(delta[0], delta[0]), 0)


def size(over, x):
    """The count where nothing is masked."""
    return jnp.full(over.shape(x), over.size(x), real_dtype(x))
