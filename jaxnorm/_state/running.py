"""How running statistics take a batch: into exponential averages, or merged with what else is seen of one batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from jaxnorm._core.moments_about import Statistics
from jaxnorm._core.numerics import MaybeArray, real_dtype, wide_dtype, widest
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.sharding import place_like, reshard_as
from jaxnorm._core.statistics import averaged
from jaxnorm._state.stream import as_moments, merge_pair, zeros_like
from jaxnorm._types import Accumulating, Moments, Recalibrating, RunningState, RunningStats, plain


def initial(shape: tuple[int, ...], dtype: Any, with_weight: bool = False) -> RunningStats:
    """Running statistics before any data, for parameters of this dtype; with a weight where averages need one."""
    mean = jnp.zeros(shape, wide_dtype(jnp.zeros((), dtype)))
    weight_sum = jnp.zeros(shape, jnp.float32) if with_weight else None
    return RunningStats(mean, jnp.ones(shape, mean.real.dtype), weight_sum)


def mean_and_var(state: RunningState, x: Array, feature_axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Running statistics as those of `x` would be: in its dimensions, its dtype of arithmetic, and sharded like it."""
    shape = tuple(n if a in feature_axes else 1 for a, n in enumerate(x.shape))
    mean, var = jnp.asarray(state.mean).reshape(shape), jnp.asarray(state.var).reshape(shape)
    return place_like(mean.astype(wide_dtype(x)), x), place_like(var.astype(real_dtype(x)), x)


def nan_if_negative(var: Array) -> Array:
    """A running variance, and NaN where it is below 0: then it is none, and ε is not to hide that."""
    return jnp.where(var < 0, jnp.nan, var)


def advance(
    state: RunningState, stats: Statistics, momentum: MaybeArray, ddof: int, with_between_variance: bool = True
) -> RunningState:
    """The state after a batch of these statistics.

    `RunningStats` average them; other forms merge them into what they have `seen`, and hold at any time what comes of
    that. `with_between_variance`: how far the means of such parts lie apart is part of the variance.
    """
    stats = _finite_stats(stats, state.mean)
    if isinstance(state, RunningStats):
        return _update(state, stats, momentum, ddof)
    seen = merge_pair(state.seen, as_moments(stats, state.seen.mean.dtype), with_between_variance)
    if isinstance(state, Accumulating):
        return Accumulating(*_update(state.before, seen, momentum, ddof), state.before, seen)
    # A momentum of 0: data replace the statistics.
    mean, var, _ = _update(plain(state)._replace(weight_sum=None), seen, jnp.zeros(()), ddof)
    return Recalibrating(mean, var, _recalibrated_weight(state, stats, momentum), seen)


def _recalibrated_weight(state: Recalibrating, stats: Statistics, momentum: MaybeArray) -> MaybeArray:
    """The weight of recalibrated averages: 1, or without a momentum the number of calls with data."""
    weight_sum = state.weight_sum
    if weight_sum is None:
        return None
    # The old weight does not count: it begins at 0.
    weight = 1 if momentum is not None else jnp.where(state.seen.count > 0, weight_sum, 0) + 1
    return jnp.where(stats.count > 0, weight, weight_sum).astype(weight_sum.dtype)


def advance_by_examples(
    state: RunningState, stats: Statistics, momentum: MaybeArray, ddof: int, example_axes: tuple[int, ...], size: Any
) -> RunningState:
    """The state after statistics of each example along `example_axes`: each with a variance weighs as `size` data."""
    n, *_, var = stats
    some = n > ddof
    var = jnp.where(some, unbiased(n, var, ddof), 1)
    mean_stats = averaged(Reduction(example_axes), stats._replace(count=size * some.astype(n.dtype), var=var))
    return advance(state, mean_stats, momentum, 0, with_between_variance=False)


def unbiased(n: Array, var: Array, ddof: int) -> Array:
    """The variance as if of all data, from that of n of them; as it is where n ≤ ddof leaves none."""
    return var * jnp.where(n > ddof, n / jnp.where(n > ddof, n - ddof, 1), 1)


def _finite_stats(stats: Statistics, mean: Array) -> Statistics:
    """Statistics sharded like the running mean, and without data in channels where they are not finite."""
    n, pivot, delta, var = (reshard_as(v.reshape(np.shape(mean)), mean) for v in stats)
    finite = jnp.isfinite(pivot + delta) & jnp.isfinite(var) & jnp.isfinite(n)
    return Statistics(jnp.where(finite, n, 0), pivot, delta, var)


def _update(state: RunningStats, new: Any, momentum: MaybeArray, ddof: int) -> RunningStats:
    """Running statistics after one update by `Statistics` or `Moments`; unchanged in channels without data.

    Where n ≤ ddof, there is a mean and no variance. Averages without a `weight_sum`, and recalibrated ones, move the
    mean alone. Others with one have one weight for both, so that both wait.
    """
    mean, var, weight_sum = jax.tree.map(jnp.asarray, state)
    n, new_var = new.count, unbiased(new.count, new.var, ddof)
    if weight_sum is None:
        new_mean = _average(mean, new.mean, momentum, n > 0)
        return RunningStats(new_mean, _average(var, new_var, momentum, (n > 0) & (n > ddof)))
    keep, weight, has_data = _weighted(weight_sum, momentum, (n > 0) & (n > ddof))
    return RunningStats(
        _average(mean, new.mean, keep, has_data),
        _average(var, new_var, keep, has_data),
        jnp.where(has_data, weight, weight_sum),
    )


def _weighted(weight_sum: Array, momentum: MaybeArray, has_data: Array) -> tuple[Array, Array, Array]:
    """The share of the old average beside a new value, the weight of both, and where there is any.

    w′ = a w + b,    keep = a w / w′,    with a = m and b = 1 − m, or a = b = 1 without a momentum

    (m w old + (1 − m) new) / w′ would be 0/0 at m = 1, and drift once w + 1 is w, after 2²⁴ updates.
    """
    m = None if momentum is None else momentum.astype(weight_sum.dtype)
    old, new = (weight_sum, 1) if m is None else (m * weight_sum, 1 - m)
    total = old + new
    has_data &= total > 0
    return old / jnp.where(has_data, total, 1), total, has_data


def _average(old: Array, new: Array, keep: Any, has_data: Array) -> Array:
    """keep · old + (1 − keep) · new where there are data, else `old`; in the dtype of `old`."""
    wide = widest(old.dtype, new.dtype)
    keep, new = keep.astype(wide), jnp.where(has_data, new, 0).astype(wide)
    # An old value of which nothing is kept may be NaN.
    average = keep * jnp.where((keep > 0) | jnp.isfinite(old), old, 0).astype(wide) + (1 - keep) * new
    return jnp.where(has_data, average.astype(old.dtype), old)


def begin_accumulating(state: RunningState, start: ArrayLike) -> RunningState:
    """Running statistics to which batches are parts of one; where no whole batch starts, they go on with the one begun.

    While they are recalibrated, they stay as they are.
    """
    if isinstance(state, Recalibrating):
        return state
    running, nothing = plain(state), _no_moments(state.mean)
    if isinstance(state, RunningStats):
        # A copy: no buffer can be donated twice.
        return Accumulating(*running, jax.tree.map(jnp.copy, running), nothing)
    fresh, begun = (running, nothing), (state.before, state.seen)
    before, seen = jax.tree.map(lambda new, old: jnp.where(start, new, old), fresh, begun)
    return Accumulating(*running, before, seen)


def begin_recalibrating(state: RunningState) -> RunningState:
    """Running statistics that data are to replace."""
    return Recalibrating(*plain(state), _no_moments(state.mean))


def as_complex(state: RunningState, dtype: Any) -> RunningState:
    """Running statistics with means of a complex dtype."""
    state = state._replace(mean=state.mean.astype(dtype))
    if isinstance(state, RunningStats):
        return state
    mean, residual = state.seen.mean.astype(dtype), jnp.asarray(state.seen.mean_residual, dtype)
    state = state._replace(seen=state.seen._replace(mean=mean, mean_residual=residual))
    return state._replace(before=as_complex(state.before, dtype)) if isinstance(state, Accumulating) else state


def _no_moments(mean: Any) -> Moments:
    """Moments of no data, for means of this shape and dtype."""
    return zeros_like(jnp.zeros_like(mean, dtype=wide_dtype(mean)))
