"""Running statistics: exponential averages of batch statistics."""

import jax
import jax.numpy as jnp

from jaxnorm._look import Statistics
from jaxnorm._over import Over, real_dtype, wide_dtype, wider
from jaxnorm._placed import along, back
from jaxnorm._statistics import averaged
from jaxnorm._stream import in_words, joined
from jaxnorm._trees import Accumulating, RunningStats, committed


def initial(shape, dtype, weighted=False):
    """Running statistics before any data, for parameters of this dtype; with a weight where averages need one."""
    mean = jnp.zeros(shape, wide_dtype(jnp.zeros((), dtype)))
    weight_sum = jnp.zeros(shape, jnp.float32) if weighted else None
    return RunningStats(mean, jnp.ones(shape, mean.real.dtype), weight_sum)


def mean_and_var(state, x, axes):
    """Running statistics in the place of those of `x`: in its dimensions and its dtype of arithmetic."""
    shape = tuple(n if a in axes else 1 for a, n in enumerate(x.shape))
    mean, var = jnp.asarray(state.mean).reshape(shape), jnp.asarray(state.var).reshape(shape)
    return along(mean.astype(wide_dtype(x)), x), along(var.astype(real_dtype(x)), x)


def shown(var):
    """A running variance, and NaN where it is below 0: then it is none, and ε is not to hide that."""
    return jnp.where(var < 0, jnp.nan, var)


def advance(state, found, momentum, ddof, between=True):
    """The state after a batch in which `found` was found. `between`: the variance of means is part of the variance."""
    found = _placed(found, state.mean)
    if not isinstance(state, Accumulating):
        return _update(state, found, momentum, ddof)
    *_, before, seen = state
    merged = joined(seen, in_words(found, seen.mean.dtype), between)
    if before is not None:
        return Accumulating(*_update(before, merged, momentum, ddof), before, merged)
    # A momentum of 0: data replace the statistics, and stand for so many calls.
    new = _update(committed(state)._replace(weight_sum=None), merged, jnp.zeros(()), ddof)
    weight_sum = state.weight_sum
    if weight_sum is not None:
        more = 1 if momentum is not None else jnp.where(seen.count > 0, weight_sum, 0) + 1
        weight_sum = jnp.where(found.count > 0, more, weight_sum).astype(weight_sum.dtype)
    return Accumulating(new.mean, new.var, weight_sum, None, merged)


def advance_by_each(state, found, momentum, ddof, axes, size):
    """The same for statistics of each example along `axes`: all that have a variance weigh the same, as `size` data."""
    n, *_, var = found
    some = n > ddof
    var = jnp.where(some, _unbiased(n, var, ddof), 1)
    found = averaged(Over(axes), found._replace(count=size * some.astype(n.dtype), var=var))
    return advance(state, found, momentum, 0, between=False)


def _unbiased(n, var, ddof):
    """The variance as if of all data, from that of n of them."""
    return var * (n / jnp.where(n > ddof, n - ddof, 1))


def _placed(found, mean) -> Statistics:
    """Statistics as the running mean lies, and without data where they are NaN."""
    n, pivot, delta, var = (back(v.reshape(jnp.shape(mean)), mean) for v in found)
    finite = jnp.isfinite(pivot + delta) & jnp.isfinite(var) & jnp.isfinite(n)
    return Statistics(jnp.where(finite, n, 0), pivot, delta, var)


def _update(state, found, momentum, ddof):
    """Running statistics after one update, unchanged in channels where nothing was found."""
    mean, var, weight_sum = jax.tree.map(jnp.asarray, state)
    n, found_var = found.count, _unbiased(found.count, found.var, ddof)
    if weight_sum is None:
        new_mean = _average(mean, found.mean, momentum, n > 0)
        return RunningStats(new_mean, _average(var, found_var, momentum, (n > 0) & (n > ddof)))
    keep, new, measured = _weighted(weight_sum, momentum, (n > 0) & (n > ddof))
    return RunningStats(
        _average(mean, found.mean, keep, measured),
        _average(var, found_var, keep, measured),
        jnp.where(measured, new, weight_sum),
    )


def _weighted(weight_sum, momentum, measured):
    """The share of the old average beside a new value, the weight of both, and where there is any.

    w′ = a w + b,    keep = a w / w′,    with a = m and b = 1 − m, or a = b = 1 without a momentum

    (m w old + (1 − m) new) / w′ would be 0/0 at m = 1, and drift once w + 1 is w, after 2²⁴ updates.
    """
    m = None if momentum is None else momentum.astype(weight_sum.dtype)
    old, new = (weight_sum, 1) if m is None else (m * weight_sum, 1 - m)
    total = old + new
    measured &= total > 0
    return old / jnp.where(measured, total, 1), total, measured


def _average(old, new, keep, measured):
    """keep · old + (1 − keep) · new where something was measured, in the dtype of `old`."""
    wide = wider(old.dtype, new.dtype)
    keep, new = keep.astype(wide), jnp.where(measured, new, 0).astype(wide)
    # An old value of which nothing is kept may be NaN.
    moved = keep * jnp.where((keep > 0) | jnp.isfinite(old), old, 0).astype(wide) + (1 - keep) * new
    return jnp.where(measured, moved.astype(old.dtype), old)
