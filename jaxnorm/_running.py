"""Running statistics: exponential averages of batch statistics."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._look import Statistics
from jaxnorm._over import Over, real_dtype, wide_dtype
from jaxnorm._placed import along, back
from jaxnorm._statistics import pooled
from jaxnorm._trees import Accumulating, RunningStats, committed


def mean_and_var(state, x, axes):
    """Running statistics in the place of those of `x`: in its dimensions and its dtype of arithmetic."""
    shape = tuple(n if a in axes else 1 for a, n in enumerate(x.shape))
    mean, var = jnp.asarray(state.mean).reshape(shape), jnp.asarray(state.var).reshape(shape)
    return along(mean.astype(wide_dtype(x)), x), along(var.astype(real_dtype(x)), x)


def advance(state, found, momentum, ddof):
    """The state after a batch in which `found` was found."""
    found = _placed(found, state.mean)
    if not isinstance(state, Accumulating):
        return _update(state, found, momentum, ddof, found.count > 0)
    *_, before, seen = state
    old = committed(state) if before is None else before
    # A missing count reads as 0.
    old = old._replace(count=jax.tree.map(jnp.zeros_like, state.count)) if old.count is None else old
    momentum = jnp.zeros(()) if before is None else momentum
    both = jax.tree.map(lambda old, new: jnp.stack([old, new.astype(old.dtype)]), seen, found)
    seen = jax.tree.map(lambda v: v[0], pooled(Over((0,)), both))
    # Each batch that replaces a state counts, and all that make an update count once.
    came = (found if before is None else seen).count > 0
    return Accumulating(*_update(old, seen, momentum, ddof, came), before, seen)


def _placed(found, mean) -> Statistics:
    """Statistics as the running mean lies, without derivative, and without data where they are NaN."""
    n, pivot, delta, var = (back(lax.stop_gradient(v).reshape(jnp.shape(mean)), mean) for v in found)
    finite = jnp.isfinite(pivot + delta) & jnp.isfinite(var)
    return Statistics(jnp.where(finite, n, 0), pivot, delta, var)


def _update(state, found, momentum, ddof, came):
    """Running statistics after one update, which counts if data came; unchanged in channels where nothing was found."""
    mean, var, count = jax.tree.map(jnp.asarray, state)
    n, biased = found.count, found.var
    # None: equal weight per update, so that the first one replaces the initial state.
    keep = _share(count.astype(biased.dtype)) if momentum is None else momentum
    spread = n > ddof
    unbiased = biased * (n / jnp.where(spread, n - ddof, 1))
    return RunningStats(
        _average(mean, found.mean, keep, n > 0),
        _average(var, unbiased, keep, (n > 0) & spread),
        None if count is None else count + came.any().astype(count.dtype),
    )


def _share(count):
    """The weight of so many updates beside one more."""
    return count / (count + 1)


def _average(old, new, keep, measured):
    """keep · old + (1 − keep) · new where something was measured, in the dtype of `old`."""
    wide = max(old.dtype, new.dtype, key=lambda dtype: dtype.itemsize)
    keep, new = keep.astype(wide), jnp.where(measured, new, 0).astype(wide)
    # An old value of which nothing is kept may be NaN.
    moved = keep * jnp.where(keep > 0, old, 0).astype(wide) + (1 - keep) * new
    return jnp.where(measured, moved.astype(old.dtype), old)
