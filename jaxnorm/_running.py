"""Running statistics: exponential averages of batch statistics."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxnorm._features import in_words, joined
from jaxnorm._look import Statistics
from jaxnorm._over import Over, real_dtype, wide_dtype, wider
from jaxnorm._placed import along, anywhere, back
from jaxnorm._statistics import averaged
from jaxnorm._trees import Accumulating, RunningStats, committed


def initial(shape, dtype):
    """Running statistics before any data, for parameters of this dtype."""
    mean = jnp.zeros(shape, wide_dtype(jnp.zeros((), dtype)))
    return RunningStats(mean, jnp.ones(shape, mean.real.dtype), jnp.zeros((), jnp.int32))


def mean_and_var(state, x, axes):
    """Running statistics in the place of those of `x`: in its dimensions and its dtype of arithmetic."""
    shape = tuple(n if a in axes else 1 for a, n in enumerate(x.shape))
    mean, var = jnp.asarray(state.mean).reshape(shape), jnp.asarray(state.var).reshape(shape)
    return along(mean.astype(wide_dtype(x)), x), along(var.astype(real_dtype(x)), x)


def advance(state, found, momentum, ddof, between=True):
    """The state after a batch in which `found` was found. `between`: the variance of means is part of the variance."""
    found = _placed(found, state.mean)
    if not isinstance(state, Accumulating):
        return _update(state, found, momentum, ddof, found.count > 0)
    *_, before, seen = state
    old = committed(state) if before is None else before
    # A missing count reads as 0.
    old = old._replace(count=jax.tree.map(jnp.zeros_like, state.count)) if old.count is None else old
    momentum = jnp.zeros(()) if before is None else momentum
    seen = joined(seen, in_words(found, seen.mean.dtype), between)
    # Each batch that replaces a state counts, and all that make an update count once.
    came = (found if before is None else seen).count > 0
    return Accumulating(*_update(old, seen, momentum, ddof, came), before, seen)


def advance_by_each(state, found, momentum, ddof, axes):
    """The same for statistics of each example along `axes`: all that have a variance weigh the same."""
    n, *_, var = found
    some = n > ddof
    var = jnp.where(some, _unbiased(n, var, ddof), 1)
    found = averaged(Over(axes), found._replace(count=some.astype(n.dtype), var=var))
    return advance(state, found, momentum, 0, between=False)


def _unbiased(n, var, ddof):
    """The variance as if of all data, from that of n of them."""
    return var * (n / jnp.where(n > ddof, n - ddof, 1))


def _placed(found, mean) -> Statistics:
    """Statistics as the running mean lies, without derivative, and without data where they are NaN."""
    n, pivot, delta, var = (back(lax.stop_gradient(v).reshape(jnp.shape(mean)), mean) for v in found)
    finite = jnp.isfinite(pivot + delta) & jnp.isfinite(var) & jnp.isfinite(n)
    return Statistics(jnp.where(finite, n, 0), pivot, delta, var)


def _update(state, found, momentum, ddof, came):
    """Running statistics after one update, which counts if data came; unchanged in channels where nothing was found."""
    mean, var, count = jax.tree.map(jnp.asarray, state)
    n = found.count
    # None: equal weight per update, so that the first one replaces the initial state.
    keep = _share(count.astype(found.var.dtype)) if momentum is None else momentum
    return RunningStats(
        _average(mean, found.mean, keep, n > 0),
        _average(var, _unbiased(n, found.var, ddof), keep, (n > 0) & (n > ddof)),
        None if count is None else count + anywhere(came.any(), mean, count).astype(count.dtype),
    )


def _share(count):
    """The weight of so many updates beside one more."""
    return count / (count + 1)


def _average(old, new, keep, measured):
    """keep · old + (1 − keep) · new where something was measured, in the dtype of `old`."""
    wide = wider(old.dtype, new.dtype)
    keep, new = keep.astype(wide), jnp.where(measured, new, 0).astype(wide)
    # An old value of which nothing is kept may be NaN.
    moved = keep * jnp.where(keep > 0, old, 0).astype(wide) + (1 - keep) * new
    return jnp.where(measured, moved.astype(old.dtype), old)
